"""One aggregator per fleet: what the aggregator's own state topic says about others, and who gives way."""

from __future__ import annotations

from typing import Literal

from edgefed.errors import FleetTaken
from edgefed.protocol.messages.retained import AggregatorState, decode_aggregator_state

__all__ = ["ANSWER_S", "CLAIM_S", "FleetClaim"]

ANSWER_S = 5.0
"""How long a newcomer waits for the answer of an aggregator that may be at work."""

CLAIM_S = 1.0
"""How long a newcomer waits for what the broker keeps of an aggregator; it usually comes at once, or there is none."""


class FleetClaim:
    """An aggregator's claim to a fleet.

    Where the broker's last word of another run's aggregator is that it is at work, a newcomer says a word of its own,
    and gives way if the other one answers. It may not: a machine that lost its power took broker and aggregator with
    it, and the word stayed. Two that work and hear of each other, because a connection was down, agree by their runs'
    ids which of them gives way. The store sees to it that no two serve the same run.

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
        self._challenged = False
        self._yields = False

    @property
    def holds(self) -> bool:
        """Whether the fleet is this aggregator's."""
        return self._claimed

    @property
    def yields(self) -> bool:
        """Whether it is anybody's who asks for it."""
        return self._yields

    def take(self) -> None:
        """Nobody has objected: from now on the fleet is this aggregator's."""
        self._claimed = True

    def yield_to_anybody(self) -> None:
        """From now on this aggregator keeps the fleet only until another one takes it, whichever that is."""
        self._yields = True

    def hear(self, payload: bytes) -> Literal["own", "vacant", "doubtful"]:
        """Returns whether a word on the state topic is this process's own, leaves the topic to it, or must be doubted.

        Raises:
            FleetTaken: another aggregator serves the fleet, and this one gives way.
            MessageError: it does not decode.
        """
        other = decode_aggregator_state(payload)
        if other.instance == self._instance:
            return "vacant" if other.status == "lost" else "own"  # its will: the connection was down, and is back
        keeps = self._claimed and not self._yields and self._run < other.run
        if other.status != "online" or other.run == self._run or keeps:
            return "vacant"
        if not self._claimed and not self._challenged:
            self._challenged = True
            return "doubtful"
        self._claimed = False
        raise self._taken_by(other)

    def challenge(self) -> AggregatorState:
        """Returns the word that a live aggregator answers; not to be retained, since the fleet is not ours yet."""
        return AggregatorState(status="stopped", instance=self._instance, run=self._run)

    def _taken_by(self, other: AggregatorState) -> FleetTaken:
        return FleetTaken(
            f"another aggregator (run {other.run}, in round {other.round}) serves fleet {self._fleet!r}: stop it, or "
            "give this federation another fleet"
        )
