"""Files that are sent once for all who want them, and what happens when one of them vanishes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgefed.coordinator.broadcast import Broadcast
from edgefed.protocol.chunks import CHUNK_HEADER_BYTES, Ranges
from edgefed.protocol.topics import Topics
from edgefed.transport.in_memory import InMemoryBroker

CONTENT = bytes(100)
ONE, OTHER, THIRD = "a" * 64, "b" * 64, "c" * 64


def offered(tmp_path: Path, gone: list[Path] | None) -> Broadcast:
    broadcast = Broadcast(
        InMemoryBroker().connect("aggregator"),
        Topics("test"),
        chunk_bytes=30,
        settle_s=0.0,
        gone=None if gone is None else gone.append,
    )
    files = {sha256: tmp_path / sha256 for sha256 in (ONE, OTHER, THIRD)}
    for path in files.values():
        path.write_bytes(CONTENT)
    broadcast.offer(files)
    for sha256 in files:
        broadcast.want("one", {sha256: Ranges([(0, len(CONTENT))])})
    return broadcast


async def test_a_release_whose_file_vanishes_while_it_is_wanted_does_not_end_the_rest(tmp_path: Path) -> None:
    """The next release takes the place of one that was stopped, and a device was still fetching that."""
    gone: list[Path] = []
    broadcast = offered(tmp_path, gone)
    for sha256 in (ONE, THIRD):
        (tmp_path / sha256).unlink()
    running = asyncio.create_task(broadcast.run())
    everything = len(CONTENT) + 4 * CHUNK_HEADER_BYTES
    for _ in range(1000):
        await asyncio.sleep(0.001)
        if broadcast.sent_bytes == everything or running.done():  # the last pieces are taken before they are sent
            break
    assert not running.done()
    assert gone == [tmp_path / ONE, tmp_path / THIRD]
    assert broadcast.sent_bytes == everything
    running.cancel()


async def test_a_part_of_an_adapter_that_vanishes_is_an_error(tmp_path: Path) -> None:
    broadcast = offered(tmp_path, None)
    (tmp_path / ONE).unlink()
    with pytest.raises(FileNotFoundError):
        await broadcast.run()
