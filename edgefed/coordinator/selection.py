"""Who takes part in a round, and when the round closes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["Selection"]

PositiveSeconds = Annotated[float, Meta(gt=0)]


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Selection, quorum, deadline and late updates.

    Attributes:
        participants: updates wanted per round; 0 means from every device that joins.
        over_selection: how many times `participants` devices are taken in, so that slow ones need not be waited for.
        quorum: a round never closes with fewer updates.
        expected_devices: once that many have joined, gathering ends at once; 0 always waits `gather_s`, and so does a
            fleet of which devices are paused, drained or removed, where these were counted.
        gather_s: how long a round waits for devices to join before it selects.
        deadline_s: how long after the selection a round closes; below the quorum it stays open and calls again.
        late: what becomes of an update that arrives after its round has closed: `drop` it, or `discount` its weight
            in the next sum by (1 + staleness)^-late_exponent, as in buffered asynchronous aggregation
            (arXiv 2106.06639).
        late_exponent: of that discount.
        max_staleness: updates that would be older than this many rounds in the next sum are dropped all the same; one
            that was taken waits for longer where rounds are given up.
    """

    participants: Annotated[int, Meta(ge=0)] = 0
    over_selection: Annotated[float, Meta(ge=1, le=10)] = 1.0
    quorum: Annotated[int, Meta(ge=1)] = 1
    expected_devices: Annotated[int, Meta(ge=0)] = 0
    gather_s: PositiveSeconds = 10.0
    deadline_s: PositiveSeconds = 600.0
    late: Literal["drop", "discount"] = "discount"
    late_exponent: Annotated[float, Meta(ge=0)] = 0.5
    max_staleness: Annotated[int, Meta(ge=1)] = 10

    def __post_init__(self) -> None:
        """Refuses a quorum that a round could never reach."""
        if self.participants and self.quorum > self.participants:
            raise ValueError(f"quorum ({self.quorum}) is larger than participants ({self.participants})")
        if self.expected_devices and self.quorum > self.expected_devices:
            raise ValueError(f"quorum ({self.quorum}) is larger than expected_devices ({self.expected_devices})")

    def late_weight(self, examples: int, staleness: int) -> float:
        """Returns the weight of an update that is `staleness` rounds old; its examples where it is on time."""
        return float(examples * (1.0 + staleness) ** -self.late_exponent)
