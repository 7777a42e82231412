"""What is in force for this device: the next announcement, whether a round is still open, what the operator wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from edgefed.protocol.messages.down import Standing
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
        self._standing: Standing | None = None
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def post(self, message: RoundMessage) -> bool:
        """Takes a message from the round topic, and returns whether it announces once more what is in force.

        That calls for more devices, or the aggregator was restarted and has forgotten what it was told.
        """
        again = self._latest is not None and not _moved_on(self._latest, message)
        self._latest = message
        self._seen = False
        self._tell_waiters()
        return again

    def stand(self, standing: Standing) -> bool:
        """Takes what the operator wants of this device, and returns whether it gets tasks again and did not before.

        It then looks at the open round once more.
        """
        was_held = self._standing is not None and self._standing.duty != "active"
        self._standing = standing
        again = was_held and standing.duty == "active"
        if again and self._latest is not None:
            self._seen = False
        self._tell_waiters()
        return again

    def why_held(self, run: str) -> str:
        """Returns why this device gets no task of a run; "" where it does."""
        standing = self._standing
        return "" if standing is None or standing.run != run or standing.duty == "active" else standing.reason

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
            raise RoundIsOver(self._removed() or why)
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _until(self, moved_on: Callable[[RoundMessage], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._latest is not None and (moved_on(self._latest) or bool(self._removed()))
            )

    def _removed(self) -> str:
        """Returns why even what was begun must end; "" where it need not."""
        if self._latest is None or self._standing is None or self._standing.duty != "removed":
            return ""
        return self.why_held(self._latest.run)

    def _tell_waiters(self) -> None:
        task = asyncio.ensure_future(self._notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _moved_on(from_: RoundMessage, to: RoundMessage) -> bool:
    return isinstance(to, FederationFinished) or (from_.run, from_.round) != (to.run, to.round)
