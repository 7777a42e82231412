"""How long a plan's work took, so that a device does not start what it cannot finish before the deadline."""

from __future__ import annotations

from edgefed.agent.plan import CannotTakePart
from edgefed.protocol.messages.manifest import Plan

__all__ = ["OutOfTime", "WorkTimes"]

_MARGIN = 1.2
_FORGETTING = 0.9


class OutOfTime(CannotTakePart):
    """What is left of the round is too short. Announced again, the round has a new deadline."""


class WorkTimes:
    """Seconds of the latest work, by plan."""

    def __init__(self) -> None:
        self._last_s: dict[Plan, float] = {}

    def took(self, plan: Plan, seconds: float) -> None:
        """Remembers how long a plan's work took."""
        self._last_s[plan] = seconds

    def check(self, plan: Plan, remaining_s: float) -> None:
        """Does not let work begin that cannot be finished: it would cost energy and count for nothing.

        A memory that keeps the device out counts for less the next time. Else one bad moment would keep it out for
        ever, for nothing is measured while it stays out; and with enough such devices no round reached its quorum.

        Raises:
            OutOfTime: the work took longer than what is left, by the latest measurement.
        """
        last_s = self._last_s.get(plan, 0.0)
        needed_s = last_s * _MARGIN
        if needed_s > remaining_s:
            self._last_s[plan] = last_s * _FORGETTING
            raise OutOfTime(f"{remaining_s:.0f} s are left, and this device needed {needed_s:.0f} s last time")
