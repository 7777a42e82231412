"""Fetching rank layers from the broadcast: listen, ask for what is missing, and ask again for what got lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgefed.errors import ChunkError
from edgefed.protocol.chunks import decode_chunk
from edgefed.protocol.messages.manifest import Part
from edgefed.protocol.messages.up import PartRanges, PartsWanted, UpMessage
from edgefed.protocol.messages.wire import MAX_RANGES
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Transport
from edgefed.transport.blob_receiver import IncomingBlob
from edgefed.waiting import wait_at_most

__all__ = ["Downloads", "Fetched"]

_FIRST_PATIENCE_S = 3.0
_LONGEST_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """Rank layers that are here, whole and checked.

    Attributes:
        paths: their files, in the order asked for.
        received_bytes: payload bytes that arrived for them, duplicates included; 0 where all were here before.
        fetch_s: seconds from the first request to the last byte.
    """

    paths: list[Path]
    received_bytes: int
    fetch_s: float


class Downloads:
    """The parts that this device is fetching at the moment.

    Args:
        transport: connected.
        topics: of the fleet.
        send: sends a message to the aggregator.
        directory: where parts are kept.
        window_bytes: ask for so much at a time: what is larger than a broker's queue would overflow it on the way to a
            slow device. None asks for all at once, so that one broadcast serves everybody.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        send: Callable[[UpMessage], Awaitable[None]],
        directory: Path,
        *,
        window_bytes: int | None = None,
    ) -> None:
        self._transport = transport
        self._topics = topics
        self._send = send
        self._directory = directory
        self._window_bytes = window_bytes
        self._asked_up_to_bytes = 0
        self._arriving: dict[str, IncomingBlob] = {}
        self._news = asyncio.Event()
        self._received_bytes = 0
        self._reconnected = False
        self._disk_error: OSError | None = None

    @property
    def held_bytes(self) -> int:
        """How much of what is being fetched is here."""
        return sum(blob.received_bytes for blob in self._arriving.values())

    def receive(self, payload: bytes) -> None:
        """Takes a broadcast chunk; one that is malformed, or for something not wanted here, is left aside."""
        try:
            chunk = decode_chunk(payload)
            blob = self._arriving.get(chunk.sha256)
            if blob is None:
                return
            blob.receive(chunk)
        except ChunkError:
            return
        except OSError as error:  # whoever fetches hears of it; whoever reads the connection goes on
            self._disk_error = error
            self._news.set()
            return
        self._received_bytes += len(payload)
        self._news.set()

    def ask_again(self) -> None:
        """After a reconnect: what was on its way may be gone, so ask now rather than after the patience is over."""
        self._reconnected = True
        self._news.set()

    async def fetch(self, run: str, parts: Sequence[Part]) -> Fetched:
        """Returns when all parts are here; what an earlier attempt brought is kept.

        Waits for as long as it takes: the caller bounds it.

        Raises:
            OSError: the disk is full or failing.
        """
        started_s = time.monotonic()
        self._received_bytes = 0
        self._disk_error = None
        try:
            for part in parts:
                if not (self._directory / part.sha256).is_file():
                    await self._begin(part)
            silent, patience_s = True, _FIRST_PATIENCE_S
            while self._arriving:
                if silent:
                    await self._ask(run)
                came = await self._flows(patience_s)  # what is on its way is not asked for again
                silent = came != "part"
                if came == "nothing":  # a slow link is silent for long between chunks that are long
                    patience_s = min(_LONGEST_PATIENCE_S, 2 * patience_s)
                for sha256 in [name for name, blob in self._arriving.items() if blob.complete]:
                    await self._finish(sha256)
        finally:
            for sha256 in list(self._arriving):
                await self._drop(sha256)
        fetch_s = time.monotonic() - started_s if self._received_bytes else 0.0
        return Fetched([self._directory / part.sha256 for part in parts], self._received_bytes, fetch_s)

    async def _begin(self, part: Part) -> None:
        self._arriving[part.sha256] = IncomingBlob(self._directory, part.sha256, part.size_bytes)
        await self._transport.subscribe(self._topics.blob(part.sha256))

    async def _ask(self, run: str) -> None:
        self._reconnected = False  # whatever connection was lost before this word, nothing of it was on its way
        room = MAX_RANGES
        room_bytes = self._window_bytes
        wanted = []
        for sha256, blob in self._arriving.items():
            missing = _first(list(blob.missing())[:room], room_bytes)
            if missing:
                wanted.append(PartRanges(sha256=sha256, missing=missing))
                room -= len(missing)
                if room_bytes is not None:
                    room_bytes -= sum(hi - lo for lo, hi in missing)
        self._asked_up_to_bytes = self.held_bytes + sum(hi - lo for one in wanted for lo, hi in one.missing)
        if wanted:
            await self._send(PartsWanted(run=run, parts=wanted))

    async def _flows(self, patience_s: float) -> Literal["part", "window", "nothing"]:
        """Returns what came: a whole part; all that was asked for; or nothing for a while, or over a new connection."""
        while not any(blob.complete for blob in self._arriving.values()):
            self._news.clear()
            try:
                await wait_at_most(self._news.wait(), patience_s)
            except asyncio.TimeoutError:
                return "nothing"
            if self._disk_error is not None:
                raise self._disk_error
            if self._reconnected:
                return "nothing"
            if self._window_bytes is not None and self.held_bytes >= self._asked_up_to_bytes:
                return "window"
        return "part"

    async def _finish(self, sha256: str) -> None:
        try:
            await asyncio.to_thread(self._arriving[sha256].finish)
        except ChunkError:
            self.ask_again()  # the content contradicted its hash: the blob has started over
            return
        await self._drop(sha256)

    async def _drop(self, sha256: str) -> None:
        blob = self._arriving.pop(sha256)
        with contextlib.suppress(OSError):  # what it could not remember is fetched again
            await asyncio.to_thread(blob.close)
        await self._transport.unsubscribe(self._topics.blob(sha256))


def _first(ranges: list[tuple[int, int]], room_bytes: int | None) -> list[tuple[int, int]]:
    """Returns the beginning of ranges, so much of them as there is room for."""
    if room_bytes is None:
        return ranges
    first = []
    for lo, hi in ranges:
        if room_bytes <= 0:
            break
        first.append((lo, min(hi, lo + room_bytes)))
        room_bytes -= hi - lo
    return first
