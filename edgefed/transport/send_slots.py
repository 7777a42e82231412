"""How many publishes may be under way at a time: taken and given back in order of asking."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["SendSlots"]


class SendSlots:
    """A semaphore whose waiters can be turned away all at once, and whose size may be set before its first use.

    Attributes:
        free: How many may be taken at once.
    """

    def __init__(self, free: int) -> None:
        self.free = free
        self._queue: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Return when there is a slot."""
        if self.free > 0 and not self._queue:
            self.free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back()  # it was ours already: pass it on
            raise

    def give_back(self) -> None:
        """Let the next one have it."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1

    def turn_away(self, error: Callable[[], Exception]) -> None:
        """Raise an error in everybody who waits."""
        for turn in self._queue:
            if not turn.done():
                turn.set_exception(error())
        self._queue.clear()
