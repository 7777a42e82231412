"""A file on its way out: the ranges that a receiver misses, read out to a topic as chunks.

The receiver is in charge. It says which ranges are missing; the sender publishes those and forgets.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edgefed.errors import ChunkError, PayloadTooLarge
from edgefed.protocol.chunks import CHUNK_HEADER_BYTES, Ranges, encode_chunk
from edgefed.transport.base import Transport
from edgefed.waiting import wait_at_most

__all__ = ["Credit", "send_ranges"]

_FIRST_PIECE_BYTES = 16 << 10
_SMALLEST_PIECE_BYTES = 8 << 10  # what a message needs besides is a hundredth of that
_QUICK_S = 0.5
_SLOW_S = 2.0


class Credit:
    """How far a sender may run ahead of its receiver.

    A broker acknowledges what it has queued, not what the receiver has, and its queue for a slow receiver
    overflows: Mosquitto drops what is past 1000 messages. So the receiver reports now and then how much it has,
    whoever hears that calls ``confirm``, and ``send_ranges`` waits in ``take``.

    Reports and chunks can get lost. When nothing is heard for ``patience_s``, what is outstanding is taken to
    be lost, not queued, and sending goes on.
    """

    def __init__(
        self,
        ahead_bytes: int,
        *,
        ahead_pieces: int | None = None,
        received_bytes: int = 0,
        patience_s: float = 10.0,
    ) -> None:
        """Start with nothing outstanding.

        Args:
            ahead_bytes: Most bytes that may be sent and not yet reported. At least two chunks, or the sender
                idles.
            ahead_pieces: Most messages that may be sent and not yet reported: brokers count those, not bytes.
            received_bytes: What the receiver had before the first chunk is sent.
            patience_s: How long to wait for a report.
        """
        self._ahead_bytes = ahead_bytes
        self._ahead_pieces = ahead_pieces
        self._received_bytes = received_bytes
        self._outstanding_bytes = 0
        self._outstanding: deque[int] = deque()  # where, in the bytes taken so far, each piece ends
        self._taken_bytes = 0
        self._patience_s = patience_s
        self._news = asyncio.Event()

    def confirm(self, received_bytes: int) -> None:
        """Take a report: the receiver has so many bytes of the blob in all. Old reports do no harm."""
        gained_bytes = received_bytes - self._received_bytes
        if gained_bytes > 0:
            self._received_bytes = received_bytes
            self._outstanding_bytes = max(0, self._outstanding_bytes - gained_bytes)
            while self._outstanding and self._outstanding[0] <= self._taken_bytes - self._outstanding_bytes:
                self._outstanding.popleft()
            self._news.set()

    async def take(self, size_bytes: int) -> None:
        """Return when so many bytes may be sent. One piece larger than the whole credit goes alone."""
        while self._is_spent(size_bytes):
            self._news.clear()
            try:
                await wait_at_most(self._news.wait(), self._patience_s)
            except asyncio.TimeoutError:
                self._outstanding_bytes = 0
                self._outstanding.clear()
        self._outstanding_bytes += size_bytes
        self._taken_bytes += size_bytes
        self._outstanding.append(self._taken_bytes)

    def _is_spent(self, size_bytes: int) -> bool:
        if not self._outstanding_bytes:
            return False
        too_many = self._ahead_pieces is not None and len(self._outstanding) >= self._ahead_pieces
        return too_many or self._outstanding_bytes + size_bytes > self._ahead_bytes


class _Pieces:
    """Ranges cut into pieces that suit the link: small ones where it is slow, so that a cut costs little."""

    def __init__(self, ranges: Ranges, most_bytes: int) -> None:
        self._spans = deque(ranges)
        self._most_bytes = most_bytes
        self._bytes = min(_FIRST_PIECE_BYTES, most_bytes)

    def take(self) -> tuple[int, int] | None:
        """Return the next piece; ``None`` when there is none left."""
        if not self._spans:
            return None
        lo, end = self._spans.popleft()
        hi = min(lo + self._bytes, end)
        if hi < end:
            self._spans.appendleft((hi, end))
        return lo, hi

    def took(self, seconds: float) -> None:
        """Take note of how long one of them was under way, behind the others that were."""
        if seconds < _QUICK_S:
            self._bytes = min(2 * self._bytes, self._most_bytes)
        elif seconds > _SLOW_S:
            self._bytes = min(max(self._bytes // 2, _SMALLEST_PIECE_BYTES), self._most_bytes)


async def send_ranges(
    transport: Transport,
    topic: str,
    path: Path,
    sha256: str,
    ranges: Ranges,
    *,
    chunk_bytes: int,
    window: int = 8,
    on_progress: Callable[[int], None] | None = None,
    credit: Credit | None = None,
) -> None:
    """Publish these ranges of a file as chunks and return once the broker has acknowledged all of them.

    Args:
        transport: Where to.
        topic: Where to.
        path: The file, all of the blob.
        sha256: Of the whole file.
        ranges: What to send.
        chunk_bytes: Most data bytes per chunk; less where the transport takes less, and on a slow link, where the
            size follows how long chunks take.
        window: Publishes that may wait for the broker's acknowledgement at a time.
        on_progress: Called with the data bytes of every chunk that the broker acknowledged.
        credit: Holds the sender back when the receiver falls behind.

    Raises:
        ChunkError: ``ranges`` reach past the end of the file, or it shrank meanwhile.
        PayloadTooLarge: The transport takes no more than a chunk's header.
        TransportError: As ``Transport.publish``.
    """
    chunk_bytes = min(chunk_bytes, transport.max_payload_bytes - CHUNK_HEADER_BYTES)
    if chunk_bytes < 1:
        raise PayloadTooLarge(CHUNK_HEADER_BYTES + 1, transport.max_payload_bytes)
    pieces = _Pieces(ranges, chunk_bytes)
    clock = asyncio.get_running_loop().time
    with path.open("rb", buffering=0) as file:
        total_bytes = os.fstat(file.fileno()).st_size
        if ranges.end > total_bytes:
            raise ChunkError(f"{path} has {total_bytes} bytes and cannot give [.., {ranges.end})")

        async def lane() -> None:
            while (piece := pieces.take()) is not None:  # all lanes: each piece is sent once, in about this order
                lo, hi = piece
                if credit is not None:
                    await credit.take(hi - lo)
                data = os.pread(file.fileno(), hi - lo, lo)
                if len(data) < hi - lo:
                    raise ChunkError(f"{path} ended at {lo + len(data)} while it was being sent")
                begun_s = clock()
                await transport.publish(topic, encode_chunk(sha256, lo, total_bytes, data))
                pieces.took(clock() - begun_s)
                if on_progress is not None:
                    on_progress(hi - lo)

        lanes = [asyncio.create_task(lane()) for _ in range(window)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for task in lanes:
                task.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
