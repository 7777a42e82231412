"""What has happened to the aggregator, one thing after the other, and what goes on in the background meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from edgefed.coordinator import events
from edgefed.coordinator.answers import MergedRound
from edgefed.protocol.messages.up import UpdateOffer
from edgefed.transport.base import Event, Transport
from edgefed.waiting import wait_at_most

__all__ = ["Arrived", "Broken", "Inbox", "Item", "WorkDone"]

_ROOM = 256


@dataclass(frozen=True, slots=True)
class Arrived:
    """An update is here as a whole."""

    device: str
    offer: UpdateOffer
    path: Path


@dataclass(frozen=True, slots=True)
class WorkDone:
    """A closed round has its adapter, and this is its record; or the event that says why it gets none."""

    outcome: MergedRound | events.MergeFailed


@dataclass(frozen=True, slots=True)
class Broken:
    """Something in the background has failed: whoever takes it raises it."""

    error: BaseException


Item: TypeAlias = "Event | Arrived | WorkDone | Broken"


class Inbox:
    """A queue, and the tasks that fill it. A task that fails puts its error here."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[Item] = asyncio.Queue(maxsize=_ROOM)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._error: Exception | None = None

    async def put(self, item: Item) -> None:
        """Adds an item, when there is room for it."""
        await self._items.put(item)

    def post(self, item: Item) -> None:
        """Adds an item, soon: for whoever cannot wait."""
        self.spawn(partial(self.put, item))

    async def next(self, wait_s: float) -> Item | None:
        """Returns the next item, or None when there is none for so long."""
        try:
            return await wait_at_most(self._items.get(), wait_s) if wait_s > 0 else self._items.get_nowait()
        except (asyncio.TimeoutError, asyncio.QueueEmpty):
            return None

    def spawn(self, do: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Has something done in the background: called there, so that nothing is left over where it never began."""

        async def guarded() -> None:
            try:
                await do()
            except Exception as error:  # noqa: BLE001 - the task boundary: the loop raises it
                self._error = self._error or error
                self._failed.set()
                await self.put(Broken(error))

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until(self, doing: Coroutine[Any, Any, None]) -> None:
        """Waits for something that the background brings about, and raises what the background fails with instead."""
        work, failure = asyncio.ensure_future(doing), asyncio.ensure_future(self._failed.wait())
        try:
            await asyncio.wait({work, failure}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and self._error is not None:
                raise self._error
            await work
        finally:
            for task in (work, failure):
                task.cancel()
            await asyncio.gather(work, failure, return_exceptions=True)

    async def listen(self, transport: Transport) -> None:
        """Takes in whatever a transport brings, until it is closed."""
        async for event in transport.events():
            await self.put(event)

    async def close(self) -> None:
        """Ends what is done in the background."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
