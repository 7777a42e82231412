"""Where the agent looks inside a method: what its owner's limits alone make of it, and which parts a plan needs."""

from __future__ import annotations

from edgefed.agent.options import Limits
from edgefed.protocol.messages.manifest import Manifest, Part, Plan
from edgefed.protocol.messages.retained import RoundOpen

__all__ = ["CannotTakePart", "owners_plan", "parts_to_fetch"]


class CannotTakePart(Exception):
    """The device stays out of a round; the message says why, in words for the operator."""


def owners_plan(announced: RoundOpen, limits: Limits, unmeasured: str) -> Plan:
    """Returns the plan of a device that could not be measured, from its owner's limits alone.

    The trained rank is the largest that the federation offers and the owner allows. Where the method starts from the
    truncated global adapter the held rank is the same; where it is kept frozen beside the fresh factors, as much of it
    as the owner allows.

    Args:
        announced: the round.
        limits: what the owner allows.
        unmeasured: why nothing is known of the device.

    Raises:
        CannotTakePart: the owner left the choice to a plan, the federation offers no rank that small, or it needs the
            whole global adapter held.
    """
    if limits.quantization == "auto" or not limits.max_rank:
        raise CannotTakePart(
            f"nothing can be planned: {unmeasured}. Or set limits.max_rank and limits.quantization in agent.toml"
        )
    method = announced.method
    allowed = [rank for rank in method.ranks if rank <= limits.max_rank]
    if not allowed:
        raise CannotTakePart(
            f"the federation trains ranks {sorted(method.ranks)}, and this device allows at most {limits.max_rank}"
        )
    rank = max(allowed)
    total = announced.manifest.rank
    if method.start == "truncated":
        return Plan(rank=rank, held_rank=min(rank, total), quantization=limits.quantization)
    held = min(total, limits.max_held_rank) if limits.max_held_rank else total
    if method.aggregation == "flora" and held < total:
        raise CannotTakePart(
            f"flora needs the whole global adapter (rank {total}), and this device holds at most {limits.max_held_rank}"
        )
    return Plan(rank=rank, held_rank=held, quantization=limits.quantization)


def parts_to_fetch(manifest: Manifest, plan: Plan) -> list[Part]:
    """Returns the leading rank layers that a device with this plan needs, in order."""
    return [part for part in manifest.parts if part.rank_lo < plan.held_rank]
