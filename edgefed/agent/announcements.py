"""The round topic as the agent sees it: the next announcement, and whether a round is still the one in force."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from edgefed.protocol.messages.retained import FederationFinished, RoundMessage, RoundOpen

__all__ = ["Announcements", "RoundIsOver"]

_T = TypeVar("_T")


class RoundIsOver(Exception):
    """What was awaited no longer matters, because the federation has moved on."""


class Announcements:
    """The latest announcement. Older ones that nobody looked at are forgotten: only the present counts."""

    def __init__(self) -> None:
        self._latest: RoundMessage | None = None
        self._seen = True
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def post(self, message: RoundMessage) -> bool:
        """Takes a message from the round topic, and returns whether it announces once more what is in force.

        That calls for more devices, or the aggregator was restarted and has forgotten what it was told.
        """
        again = self._latest is not None and not _moved_on(self._latest, message)
        self._latest = message
        self._seen = False
        task = asyncio.ensure_future(self._notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return again

    async def next(self) -> RoundMessage:
        """Returns the latest announcement that was not returned before."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._seen)
            self._seen = True
            assert self._latest is not None
            return self._latest

    async def while_open(self, announced: RoundOpen, doing: Awaitable[_T]) -> _T:
        """Returns what `doing` returns, unless another round is announced first.

        Raises:
            RoundIsOver: it was; `doing` has been cancelled.
        """

        def moved_on(message: RoundMessage) -> bool:
            return _moved_on(announced, message)

        return await self._unless(moved_on, f"round {announced.round} closed before this was done", doing)

    async def while_run(self, announced: RoundOpen, doing: Awaitable[_T]) -> _T:
        """Returns what `doing` returns, unless the federation ends or another one begins first.

        Raises:
            RoundIsOver: it did; `doing` has been cancelled.
        """

        def moved_on(message: RoundMessage) -> bool:
            return isinstance(message, FederationFinished) or message.run != announced.run

        return await self._unless(moved_on, "the federation ended before this was done", doing)

    async def _unless(self, moved_on: Callable[[RoundMessage], bool], why: str, doing: Awaitable[_T]) -> _T:
        work = asyncio.ensure_future(doing)
        watch = asyncio.ensure_future(self._until(moved_on))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise RoundIsOver(why)
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _until(self, moved_on: Callable[[RoundMessage], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._latest is not None and moved_on(self._latest))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _moved_on(from_: RoundMessage, to: RoundMessage) -> bool:
    return isinstance(to, FederationFinished) or (from_.run, from_.round) != (to.run, to.round)
