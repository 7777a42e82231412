"""What a report is made of: everything a run kept about its rounds and its devices, as values."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgefed.protocol.records import RoundRecord

__all__ = ["REFUSED", "Delivery", "MergedFacts", "RunRecords"]

REFUSED = frozenset({"dropped", "rejected", "excluded"})
"""Outcomes of what did not enter a sum."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """What a device delivered for a round.

    Attributes:
        device: its id, as the topic says.
        round: the round it was made in.
        outcome: `counted` in its own round, `late` in a later one, `dropped`, `rejected`, `excluded` from its sum by a
            rule, or `evaluated`.
        reason: why, where it was dropped, rejected or excluded, or did not count in full.
        received_unix_s: the aggregator's wall clock when it was whole and kept.
        record: what the device said about the round; null where it said nothing.
    """

    device: str
    round: int
    outcome: Literal["counted", "late", "dropped", "rejected", "excluded", "evaluated"]
    reason: str = ""
    received_unix_s: float = 0.0
    record: RoundRecord | None = None


class MergedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One merged round, as the aggregator saw it.

    Attributes:
        round: its number, from 1.
        opened_unix_s: when it was announced, by the aggregator's wall clock.
        merged_unix_s: when its merge was done.
        merge_s: seconds that the merge took.
        received_bytes: payload of the updates that came in while it was open, chunk headers included.
        broadcast_bytes: payload of the global adapter that went out, repairs included.
        adapter_rank: of the global adapter after it.
        epsilon, delta: what all sums so far have cost of the devices' privacy; null where no noise was added.
        privacy_assumptions: what ε stands on, in words.
    """

    round: int
    opened_unix_s: float
    merged_unix_s: float
    merge_s: float
    received_bytes: int
    broadcast_bytes: int
    adapter_rank: int
    epsilon: float | None = None
    delta: float | None = None
    privacy_assumptions: str = ""


class RunRecords(msgspec.Struct, frozen=True, kw_only=True):
    """A run, finished or not.

    Attributes:
        name: of its directory.
        run: its id, drawn when it was begun.
        fleet: whose devices take part.
        model: name of the base model.
        method: what is exchanged and how it is combined, such as `lora, delta`.
        rounds: merged rounds in order.
        deliveries: in order of arrival.
    """

    name: str
    run: str
    fleet: str
    model: str
    method: str
    rounds: tuple[MergedFacts, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
