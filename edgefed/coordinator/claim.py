"""One aggregator per fleet: what the aggregator's own state topic says about others, and who gives way."""

from __future__ import annotations

from typing import Literal

from edgefed.errors import FleetTaken
from edgefed.protocol.messages.retained import AggregatorState, decode_aggregator_state

__all__ = ["CLAIM_S", "FleetClaim"]

CLAIM_S = 1.0
"""How long a newcomer waits for what the broker keeps of an aggregator; it usually comes at once, or there is none."""


class FleetClaim:
    """An aggregator's claim to a fleet.

    A newcomer gives way to an aggregator of another run whose last word is that it is at work: the broker replaces that
    word when its connection ends. Two that work and hear of each other, because a connection was down, agree by their
    runs' ids which of them gives way. The store sees to it that no two serve the same run.

    Args:
        fleet: its name.
        run: id of this aggregator's run.
        instance: id of this process.
    """

    def __init__(self, fleet: str, run: str, instance: str) -> None:
        self._fleet = fleet
        self._run = run
        self._instance = instance
        self._claimed = False

    @property
    def holds(self) -> bool:
        """Whether the fleet is this aggregator's."""
        return self._claimed

    def take(self) -> None:
        """Nobody has objected: from now on the fleet is this aggregator's."""
        self._claimed = True

    def hear(self, payload: bytes) -> Literal["own", "vacant"]:
        """Returns whether a word on the state topic is this process's own, or leaves the topic to it.

        Raises:
            FleetTaken: another aggregator serves the fleet, and this one gives way.
            MessageError: it does not decode.
        """
        other = decode_aggregator_state(payload)
        if other.instance == self._instance:
            return "own"
        if other.status == "online" and other.run != self._run and not (self._claimed and self._run < other.run):
            self._claimed = False
            raise self._taken_by(other)
        return "vacant"

    def _taken_by(self, other: AggregatorState) -> FleetTaken:
        return FleetTaken(
            f"another aggregator (run {other.run}, in round {other.round}) serves fleet {self._fleet!r}: stop it, or "
            "give this federation another fleet; one that has just died without a word is forgotten within two minutes"
        )
