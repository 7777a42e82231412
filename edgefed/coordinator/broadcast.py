"""Sending the global adapter once for all: requests are collected, and every wanted chunk is published one time.

The broker does the fan-out, so the aggregator's downlink is the bytes of the largest rank that is wanted, whatever the
number of devices. A chunk that a device lost is wanted again, and published again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edgefed.protocol.chunks import CHUNK_HEADER_BYTES, Ranges, encode_chunk
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Transport
from edgefed.waiting import wait_at_most

__all__ = ["Broadcast"]

_CHUNKS_IN_FLIGHT = 8
_LOOK_AGAIN_S = 0.2


class Broadcast:
    """The parts of the open round's global adapter, and which of their bytes somebody waits for.

    Args:
        transport: where to.
        topics: of the fleet.
        chunk_bytes: data per message; less where the broker takes less.
        settle_s: how long the first request waits for those of the other participants.
        in_flight: chunks that the broker may not have confirmed yet.
        gives_way: tells whether something more urgent is on its way, which this waits for.
        gone: called with a file that has vanished, which is then on offer no longer; without it, that is an error.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        *,
        chunk_bytes: int,
        settle_s: float,
        in_flight: int = _CHUNKS_IN_FLIGHT,
        gives_way: Callable[[], bool] = lambda: False,
        gone: Callable[[Path], None] | None = None,
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._chunk_bytes = chunk_bytes
        self._settle_s = settle_s
        self._in_flight = in_flight
        self._gives_way = gives_way
        self._gone = gone
        self._files: dict[str, Path] = {}
        self._sizes: dict[str, int] = {}
        self._pending: dict[str, Ranges] = {}
        self._awaited: set[str] = set()
        self._wanted = asyncio.Event()
        self._everybody_asked = asyncio.Event()
        self.sent_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether somebody waits for something."""
        return any(self._pending.values())

    def offer(self, files: Mapping[str, Path]) -> None:
        """Takes the parts that may be asked for, in order of rank; earlier ones are forgotten."""
        self._files = dict(files)
        self._sizes = {sha256: path.stat().st_size for sha256, path in files.items()}
        self._pending = {sha256: left for sha256, left in self._pending.items() if sha256 in self._files}

    def expect(self, devices: Iterable[str]) -> None:
        """Names devices that are about to ask, so that the broadcast can begin as soon as all have."""
        self._awaited.update(devices)
        self._everybody_asked.clear()

    def want(self, device: str, missing: Mapping[str, Ranges]) -> None:
        """Takes a device's whole request: missing ranges by the hash of the part. Parts not on offer are left aside."""
        for sha256 in missing.keys() & self._files.keys():
            size_bytes, ranges = self._sizes[sha256], missing[sha256]
            within = ranges.subtract(Ranges([(size_bytes, max(size_bytes, ranges.end))]))
            self._pending[sha256] = self._pending.get(sha256, Ranges()).union(within)
            self._wanted.set()
        self._awaited.discard(device)
        if not self._awaited:
            self._everybody_asked.set()

    async def run(self) -> None:
        """Publishes what is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            if self._awaited:
                with contextlib.suppress(asyncio.TimeoutError):
                    await wait_at_most(self._everybody_asked.wait(), self._settle_s)
                self._awaited.clear()
            self._wanted.clear()
            await asyncio.gather(*(self._lane() for _ in range(self._in_flight)))

    async def _lane(self) -> None:
        while True:
            while self._gives_way():  # noqa: ASYNC110 - what it waits for is many things
                await asyncio.sleep(_LOOK_AGAIN_S)
            piece = self._take()
            if piece is None:
                return
            sha256, path, lo, hi, total_bytes = piece
            try:
                payload = encode_chunk(sha256, lo, total_bytes, _read(path, lo, hi))
            except FileNotFoundError:
                if self._gone is None:
                    raise
                del self._files[sha256], self._pending[sha256]
                self._gone(path)
                continue
            await self._transport.publish(self._topics.blob(sha256), payload)
            self.sent_bytes += len(payload)

    def _take(self) -> tuple[str, Path, int, int, int] | None:
        """Takes the next piece off what is pending, lowest rank first: everybody needs that."""
        chunk_bytes = min(self._chunk_bytes, self._transport.max_payload_bytes - CHUNK_HEADER_BYTES)
        for sha256, path in self._files.items():
            pending = self._pending.get(sha256)
            if pending:
                lo, hi = next(pending.chunked(chunk_bytes))
                self._pending[sha256] = pending.subtract(Ranges([(lo, hi)]))
                return sha256, path, lo, hi, self._sizes[sha256]
        return None


def _read(path: Path, lo: int, hi: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, hi - lo, lo)
    finally:
        os.close(descriptor)
