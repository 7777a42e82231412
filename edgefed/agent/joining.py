"""Asking to take part in a round, until the aggregator has answered, whatever gets lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from edgefed.protocol.messages.down import Accepted, Refused
from edgefed.protocol.messages.up import Join, UpMessage
from edgefed.waiting import wait_at_most

__all__ = ["Joining", "NotSelected"]

_PATIENCE_S = 15.0


class NotSelected(Exception):
    """The aggregator refused this device for the round, or for good; the message says why."""


class Joining:
    """The round that this device asks to take part in at the moment; one at a time.

    Args:
        send: sends a message to the aggregator.
    """

    def __init__(self, send: Callable[[UpMessage], Awaitable[None]]) -> None:
        self._send = send
        self._answers: asyncio.Queue[Accepted | Refused | None] | None = None  # while it asks

    def hear(self, answer: Accepted | Refused) -> None:
        """Takes what the aggregator says to a device that has asked."""
        self._tell(answer)

    def ask_again(self) -> None:
        """The round was announced again: a restarted aggregator does not know who asked."""
        self._tell(None)

    async def join(self, join: Join) -> float:
        """Returns the seconds that are left, once the aggregator has taken this device in.

        Waits for as long as it takes: the caller bounds it.

        Raises:
            NotSelected: it refuses.
        """
        self._answers = answers = asyncio.Queue[Accepted | Refused | None]()
        try:
            while True:
                await self._send(join)
                answer = None
                with contextlib.suppress(asyncio.TimeoutError):
                    answer = await wait_at_most(_answer_to(join, answers), _PATIENCE_S)
                if isinstance(answer, Refused):
                    raise NotSelected(answer.reason)
                if answer is not None:
                    return answer.remaining_s
        finally:
            self._answers = None

    def _tell(self, answer: Accepted | Refused | None) -> None:
        if self._answers is not None:
            self._answers.put_nowait(answer)


async def _answer_to(join: Join, answers: asyncio.Queue[Accepted | Refused | None]) -> Accepted | Refused | None:
    """Returns the aggregator's answer, or None when it should be asked again."""
    while True:
        answer = await answers.get()
        if answer is None or (answer.run, answer.round) == (join.run, join.round):
            return answer
