"""What devices delivered and what became of it, and what came out of each round: the values that the store keeps."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgefed.aggregation.exchange import Intervention
from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.records import RoundRecord

__all__ = ["Answer", "MergedRound", "Outcome"]

Outcome = Literal["counted", "late", "dropped", "rejected", "evaluated"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a device delivered for a round, and what became of it.

    Attributes:
        round: the round it was made in.
        device: who delivered it.
        sha256: of the update's blob; "" for an evaluation.
        size_bytes: of the blob.
        outcome: `counted` in its own round, `late` in a later one, `dropped`, `rejected`, or `evaluated`.
        reason: why, where it was dropped or rejected.
        record: what the device said about the round.
        received_unix_s: the aggregator's wall clock.
    """

    round: int
    device: str
    sha256: str
    size_bytes: int
    outcome: Outcome
    reason: str = ""
    record: RoundRecord | None = None
    received_unix_s: float = 0.0


class MergedRound(msgspec.Struct, frozen=True, kw_only=True):
    """One round that is over: merged, or given up.

    Attributes:
        round: its number; 0 stands for the adapter before the first.
        manifest: the global adapter that came out, as the next round broadcasts it.
        devices: whose updates are in it, with the weight each had, normalised to a sum of one.
        norm: Frobenius norm of the whole global adapter.
        merge_s: seconds the merge took.
        broadcast_bytes, received_bytes: payload bytes sent and received while the round was open.
        opened_unix_s, merged_unix_s: when, by the aggregator's wall clock as it stood when the merge was over; one that
            jumped before that makes the round neither shorter nor longer.
        epsilon: of devices, over all sums so far with this one; null where no noise was added.
        delta: δ that it holds at.
        privacy_assumptions: what that guarantee stands on and what it leaves out, in words.
        interventions: accepted updates that did not enter the sum as they came.
        copied: the earlier round whose adapter is this one's, where the round was given up; null of a sum.
        given_up_because: why it was.
        digest: of the directory of the state that came out; see `digests.directory_digest`.
    """

    round: int
    manifest: Manifest
    devices: dict[str, float]
    norm: float
    merge_s: float
    broadcast_bytes: int
    received_bytes: int
    opened_unix_s: float
    merged_unix_s: float
    epsilon: float | None = None
    delta: float | None = None
    privacy_assumptions: str = ""
    interventions: tuple[Intervention, ...] = ()
    copied: int | None = None
    given_up_because: str = ""
    digest: str = ""
