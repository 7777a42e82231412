"""Whose the fleet is: asked before anything is said, and listened for as long as this aggregator serves it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal

from edgefed.coordinator.claim import ANSWER_S, CLAIM_S, FleetClaim
from edgefed.coordinator.inbox import Broken, Inbox
from edgefed.errors import MessageError
from edgefed.protocol.messages.wire import encode
from edgefed.transport.base import Message, Transport

__all__ = ["Tenure"]

_log = logging.getLogger(__name__)


class Tenure:
    """An aggregator's claim, on the topic where aggregators say that they are there.

    Args:
        claim: what is made of others' words.
        topic: of the aggregator's state.
        transport: connected.
        inbox: where what it brings arrives.
        overwritten: called when the topic has another's word, so that this aggregator's is said again.
    """

    def __init__(
        self,
        claim: FleetClaim,
        topic: str,
        transport: Transport,
        inbox: Inbox,
        *,
        overwritten: Callable[[], None],
    ) -> None:
        self._claim = claim
        self._topic = topic
        self._transport = transport
        self._inbox = inbox
        self._overwritten = overwritten

    @property
    def holds(self) -> bool:
        """Whether the fleet is this aggregator's."""
        return self._claim.holds

    @property
    def yields(self) -> bool:
        """Whether it is so only until another one takes it."""
        return self._claim.yields

    def yield_to_anybody(self) -> None:
        """From now on the fleet is whoever's takes it."""
        self._claim.yield_to_anybody()

    async def take(self) -> None:
        """Looks at what the broker keeps of an aggregator before saying anything, and takes the fleet.

        Raises:
            FleetTaken: another one is at work.
        """
        await self._transport.subscribe(self._topic)
        until_s = time.monotonic() + CLAIM_S
        while (left_s := until_s - time.monotonic()) > 0:
            if (item := await self._inbox.next(left_s)) is None:
                break
            if isinstance(item, Broken):
                raise item.error
            if isinstance(item, Message) and item.topic == self._topic:
                heard = self.hear(item.payload)
                if heard == "vacant":
                    break
                if heard == "doubtful":
                    await self._transport.publish(item.topic, encode(self._claim.challenge()))
                    until_s = time.monotonic() + ANSWER_S
        self._claim.take()

    def hear(self, payload: bytes) -> Literal["own", "vacant", "doubtful"]:
        """Takes a word on the topic; one of a process or a connection that is gone is replaced by ours.

        Raises:
            FleetTaken: another aggregator serves the fleet, and this one gives way.
        """
        heard: Literal["own", "vacant", "doubtful"] = "vacant"
        try:
            heard = self._claim.hear(payload) if payload else "vacant"
        except MessageError as error:
            _log.warning("on %s: %s", self._topic, error)
        if heard == "vacant":
            self._overwritten()
        return heard
