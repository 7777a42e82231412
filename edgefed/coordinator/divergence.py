"""When an adapter has diverged, and which one a federation then goes back to. Pure.

Devices evaluate the adapter that a round starts from, so a bad one is known when the round that it has spoiled closes:
that round is given up, and what was trained in it is in no sum. So it is with a round in which most participants find
that training, or the adapter, no longer gives finite numbers, and with one whose sum cannot be written down.

What counts is the median over the devices: a minority can neither call a good adapter bad nor a bad one good.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["Divergence", "last_good", "most_have_diverged", "typical_loss", "why_diverged"]


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about a global adapter that has become much worse, or is no longer finite.

    Attributes:
        action: `roll-back` gives the round up and goes on from the best adapter so far; `stop` ends the federation;
            `ignore` lets losses be, and ends the federation only where a sum is not finite.
        max_loss_rise: an adapter has diverged when the median of its evaluated losses is over that of the best adapter
            by more than this, in nats per target token; 2 is a perplexity of seven times the best.
        in_a_row: the federation ends when it would have to give up more rounds than this before an adapter is better.
    """

    action: Literal["roll-back", "stop", "ignore"] = "roll-back"
    max_loss_rise: Annotated[float, Meta(gt=0)] = 2.0
    in_a_row: Annotated[int, Meta(ge=1)] = 3


def typical_loss(evaluations: Iterable[tuple[str, float, int]]) -> float | None:
    """Returns the median loss of the devices that have evaluated an adapter; None where none has.

    Args:
        evaluations: device, loss, target tokens.
    """
    losses = [loss for _, loss, tokens in evaluations if tokens]
    return median(losses) if losses else None


def last_good(typical: Iterable[tuple[int, float]]) -> tuple[int, float] | None:
    """Returns the round whose adapter had the lowest typical loss, and that; None before any evaluation."""
    return min(typical, key=lambda pair: (pair[1], pair[0]), default=None)


def why_diverged(typical: Iterable[tuple[int, float]], latest: float | None, divergence: Divergence) -> str:
    """Returns why an adapter has diverged, "" where it has not.

    Args:
        typical: rounds and typical losses of the adapters so far.
        latest: typical loss of the adapter in question; None where nobody evaluated it.
        divergence: what is allowed.
    """
    best = last_good(typical)
    if divergence.action == "ignore" or latest is None or best is None or latest - best[1] <= divergence.max_loss_rise:
        return ""
    whose = f"after round {best[0]}" if best[0] else "of the base model"
    return (
        f"the adapter has diverged: its median loss on the devices is {latest:.3f}, that {whose} is {best[1]:.3f}, "
        f"and divergence.max_loss_rise is {divergence.max_loss_rise:g}"
    )


def most_have_diverged(diverged: int, participants: int) -> str:
    """Returns what to say of a round in which more than half have found values that are not finite; "" of others."""
    if 2 * diverged <= participants:
        return ""
    return f"{diverged} of {participants} participants say that training or the adapter has diverged"
