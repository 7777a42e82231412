"""Fetching a blob from the real broadcast over a broker in memory: windows, cuts, and who goes first."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from edgefed.agent.downloads import Downloads
from edgefed.coordinator.broadcast import Broadcast
from edgefed.protocol.chunks import Ranges
from edgefed.protocol.messages.manifest import Part
from edgefed.protocol.messages.up import PartsWanted, UpMessage
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message
from edgefed.transport.in_memory import InMemoryBroker

TOPICS = Topics("test")
BLOB = bytes(range(251)) * 400
SHA256 = hashlib.sha256(BLOB).hexdigest()
PART = Part(sha256=SHA256, size_bytes=len(BLOB))
CHUNK_BYTES = 1024


class Desk:
    """An aggregator's broadcast, a device's downloads, and what was asked for between them."""

    def __init__(self, directory: Path, *, window_bytes: int | None, gives_way: Callable[[], bool]) -> None:
        blob = directory / "blob"
        blob.write_bytes(BLOB)
        self.broker = broker = InMemoryBroker()
        self.device = broker.connect("device")
        self.broadcast = Broadcast(
            broker.connect("aggregator"), TOPICS, chunk_bytes=CHUNK_BYTES, settle_s=0.0, gives_way=gives_way
        )
        self.broadcast.offer({SHA256: blob})
        self.asked: list[Ranges] = []
        self.downloads = Downloads(self.device, TOPICS, self._ask, directory / "parts", window_bytes=window_bytes)

    async def _ask(self, message: UpMessage) -> None:
        assert isinstance(message, PartsWanted)
        missing = {part.sha256: Ranges(part.missing) for part in message.parts}
        self.asked.append(missing[SHA256])
        self.broadcast.want("device", missing)

    async def listen(self) -> None:
        async for event in self.device.events():
            if isinstance(event, Message):
                self.downloads.receive(event.payload)


@contextlib.asynccontextmanager
async def desk(
    directory: Path, *, window_bytes: int | None = None, gives_way: Callable[[], bool] = lambda: False
) -> AsyncIterator[Desk]:
    made = Desk(directory, window_bytes=window_bytes, gives_way=gives_way)
    tasks = [asyncio.create_task(made.listen()), asyncio.create_task(made.broadcast.run())]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_all_is_asked_for_once(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        here.downloads.ask_again()  # the connection was new before anything was on its way
        fetched = await here.downloads.fetch("run", [PART])
    assert fetched.paths[0].read_bytes() == BLOB
    assert here.asked == [Ranges([(0, len(BLOB))])]
    assert here.broadcast.sent_bytes == fetched.received_bytes


async def test_a_window_is_asked_for_after_the_other(tmp_path: Path) -> None:
    window_bytes = 10 * CHUNK_BYTES
    async with desk(tmp_path, window_bytes=window_bytes) as here:
        fetched = await here.downloads.fetch("run", [PART])
    assert fetched.paths[0].read_bytes() == BLOB
    assert here.asked == [Ranges([(lo, min(lo + window_bytes, len(BLOB)))]) for lo in range(0, len(BLOB), window_bytes)]
    assert here.broadcast.sent_bytes == fetched.received_bytes, "no byte travels twice"


async def test_what_is_less_urgent_waits_and_then_comes(tmp_path: Path) -> None:
    urgent = asyncio.Event()
    async with desk(tmp_path, gives_way=lambda: not urgent.is_set()) as here:
        fetching = asyncio.ensure_future(here.downloads.fetch("run", [PART]))
        await asyncio.sleep(0.3)
        assert here.broadcast.busy
        assert here.broadcast.sent_bytes == 0
        urgent.set()
        assert (await fetching).paths[0].read_bytes() == BLOB
        assert not here.broadcast.busy


async def test_what_was_begun_is_gone_on_with(tmp_path: Path) -> None:
    allowed = 30

    def stuck() -> bool:
        return here.broadcast.sent_bytes >= allowed * CHUNK_BYTES

    async with desk(tmp_path, gives_way=stuck) as here:
        fetching = asyncio.ensure_future(here.downloads.fetch("run", [PART]))
        while here.downloads.held_bytes < 20 * CHUNK_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        held = here.broadcast.sent_bytes
        allowed = 1000
        fetched = await here.downloads.fetch("run", [PART])
    assert fetched.paths[0].read_bytes() == BLOB
    assert here.asked[1].total_bytes <= len(BLOB) - 20 * CHUNK_BYTES
    assert held > 0


async def test_one_who_is_told_to_stop_while_the_broker_is_away_stops(tmp_path: Path) -> None:
    async with desk(tmp_path, gives_way=lambda: True) as here:
        fetching = asyncio.ensure_future(here.downloads.fetch("run", [PART]))
        while not here.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        here.broker.drop("device")
        fetching.cancel()
        await asyncio.wait({fetching}, timeout=10)
        assert fetching.cancelled()
