"""Pieces of a blob on the wire, and the byte ranges that say which pieces are there.

A chunk frame is fixed-size fields in network byte order, then the data::

    offset  size  field
         0     4  magic  b"EFC1"
         4    32  sha256 of the whole blob
        36     8  offset of the data in the blob, unsigned
        44     8  total bytes of the blob, unsigned
        52   1..  data

The data's length is what is left of the message. A frame says by itself where it belongs, so chunks may come in
any order, twice, from any sender, and after a restart.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edgefed.errors import ChunkError

__all__ = [
    "CHUNK_HEADER_BYTES",
    "MAX_WIRE_RANGES",
    "Chunk",
    "Ranges",
    "decode_chunk",
    "encode_chunk",
    "is_chunk",
]

_MAGIC = b"EFC1"
_HEADER = struct.Struct("!4s32sQQ")

CHUNK_HEADER_BYTES = _HEADER.size
"""Bytes of a chunk frame that are not data."""

MAX_WIRE_RANGES = 1024
"""Most ranges that one message may list; a receiver that misses more asks for the rest later."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a blob.

    Attributes:
        sha256: Of the whole blob, 64 lower-case hexadecimal digits.
        offset: Where in the blob the data starts.
        total_bytes: Size of the whole blob.
        data: The piece, at least one byte; a view into the decoded payload, not a copy.
    """

    sha256: str
    offset: int
    total_bytes: int
    data: bytes | memoryview

    @property
    def end(self) -> int:
        """Where in the blob the data ends, exclusive."""
        return self.offset + len(self.data)


def encode_chunk(sha256: str, offset: int, total_bytes: int, data: bytes | memoryview) -> bytes:
    """Return the frame that ``decode_chunk`` reads back.

    Raises:
        ChunkError: The fields contradict each other (see ``decode_chunk``) or ``sha256`` is not 64 hexadecimal
            digits.
    """
    _check_span(offset, len(data), total_bytes)
    return b"".join((_HEADER.pack(_MAGIC, _digest(sha256), offset, total_bytes), data))


def decode_chunk(payload: bytes) -> Chunk:
    """Return the chunk in a message's payload, its data a view into ``payload``.

    Raises:
        ChunkError: Not a chunk frame, no data in it, or data that reaches past the end of the blob.
    """
    if len(payload) < CHUNK_HEADER_BYTES:
        raise ChunkError(f"a chunk has at least {CHUNK_HEADER_BYTES} bytes of header, this one {len(payload)} in all")
    magic, digest, offset, total_bytes = _HEADER.unpack_from(payload)
    if magic != _MAGIC:
        raise ChunkError(f"a chunk starts with {_MAGIC!r}, this message with {magic!r}")
    data = memoryview(payload)[CHUNK_HEADER_BYTES:]
    _check_span(offset, len(data), total_bytes)
    return Chunk(digest.hex(), offset, total_bytes, data)


def is_chunk(payload: bytes) -> bool:
    """Return whether a payload is meant as a chunk; ``decode_chunk`` says whether it is a good one."""
    return payload.startswith(_MAGIC)


def _check_span(offset: int, data_bytes: int, total_bytes: int) -> None:
    if data_bytes == 0:
        raise ChunkError(f"the chunk at offset {offset} has no data")
    if offset < 0 or offset + data_bytes > total_bytes:
        raise ChunkError(f"a chunk of {data_bytes} bytes at offset {offset} does not fit a blob of {total_bytes} bytes")
    if total_bytes >= 1 << 63:
        raise ChunkError(f"a blob of {total_bytes} bytes is more than any file can hold")


def _digest(sha256: str) -> bytes:
    try:
        digest = bytes.fromhex(sha256)
    except ValueError:
        digest = b""
    if len(digest) != 32 or len(sha256) != 64:
        raise ChunkError(f"a sha256 is 64 hexadecimal digits, not {sha256!r}")
    return digest


class Ranges:
    """A set of byte positions, kept as sorted, disjoint, non-adjacent half-open ranges. Immutable.

    ``Ranges([(0, 4), (4, 6), (9, 12)])`` holds ``[0, 6)`` and ``[9, 12)``. Iterating gives ``(lo, hi)`` pairs;
    ``len`` counts ranges, ``total_bytes`` positions.
    """

    __slots__ = ("_spans",)

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        """Collect half-open ranges in any order; they may overlap, touch or be empty.

        Raises:
            ChunkError: A range that starts below zero or ends before it starts.
        """
        merged: list[tuple[int, int]] = []
        for lo, hi in sorted(spans):
            if lo < 0 or hi < lo:
                raise ChunkError(f"[{lo}, {hi}) is not a range of bytes")
            if merged and lo <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], hi))
            elif hi > lo:
                merged.append((lo, hi))
        self._spans = tuple(merged)

    @classmethod
    def _trusted(cls, spans: tuple[tuple[int, int], ...]) -> Ranges:
        ranges = cls.__new__(cls)
        ranges._spans = spans
        return ranges

    def add(self, lo: int, hi: int) -> Ranges:
        """Return these ranges and ``[lo, hi)``; in O(log n) comparisons, and without a sort.

        Raises:
            ChunkError: A range that starts below zero or ends before it starts.
        """
        if lo < 0 or hi < lo:
            raise ChunkError(f"[{lo}, {hi}) is not a range of bytes")
        if lo == hi:
            return self
        spans = self._spans
        first = bisect_left(spans, lo, key=lambda span: span[1])  # touches or overlaps [lo, hi), or lies above it
        last = bisect_right(spans, hi, key=lambda span: span[0])  # lies above [lo, hi)
        if first < last:
            lo, hi = min(lo, spans[first][0]), max(hi, spans[last - 1][1])
        return self._trusted((*spans[:first], (lo, hi), *spans[last:]))

    def union(self, other: Ranges) -> Ranges:
        """Return the positions in either."""
        return Ranges((*self._spans, *other._spans))

    def subtract(self, other: Ranges) -> Ranges:
        """Return the positions in these and not in ``other``."""
        left: list[tuple[int, int]] = []
        holes = iter(other._spans)
        hole = next(holes, None)
        for lo, hi in self._spans:
            while hole is not None and hole[1] <= lo:
                hole = next(holes, None)
            while hole is not None and hole[0] < hi:
                if lo < hole[0]:
                    left.append((lo, hole[0]))
                lo = min(hole[1], hi)
                if hole[1] > hi:
                    break
                hole = next(holes, None)
            if lo < hi:
                left.append((lo, hi))
        return self._trusted(tuple(left))

    def missing(self, total_bytes: int) -> Ranges:
        """Return the positions of ``[0, total_bytes)`` that are not in these."""
        return Ranges([(0, total_bytes)]).subtract(self)

    def chunked(self, chunk_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield the same positions as ``(lo, hi)`` pieces of at most ``chunk_bytes``, in order.

        Raises:
            ValueError: ``chunk_bytes`` is not positive.
        """
        if chunk_bytes < 1:
            raise ValueError(f"a chunk has at least 1 byte, not {chunk_bytes}")
        for lo, hi in self._spans:
            for start in range(lo, hi, chunk_bytes):
                yield start, min(start + chunk_bytes, hi)

    @property
    def total_bytes(self) -> int:
        """How many positions these ranges hold."""
        return sum(hi - lo for lo, hi in self._spans)

    @property
    def end(self) -> int:
        """The position behind the last one held; 0 when empty."""
        return self._spans[-1][1] if self._spans else 0

    @property
    def prefix_bytes(self) -> int:
        """How many positions from 0 on are held without a gap."""
        return self._spans[0][1] if self._spans and self._spans[0][0] == 0 else 0

    def to_list(self, max_ranges: int | None = None) -> list[list[int]]:
        """Return ``[[lo, hi], …]`` for a JSON message; the lowest ``max_ranges`` of them where a limit is given."""
        return [[lo, hi] for lo, hi in self._spans[:max_ranges]]

    @classmethod
    def from_list(cls, pairs: Any, *, max_ranges: int = MAX_WIRE_RANGES) -> Ranges:
        """Return the ranges in what another machine sent.

        Raises:
            ChunkError: Not a list of ``[lo, hi]`` integer pairs, more than ``max_ranges`` of them, or a pair
                that is no range.
        """
        if not isinstance(pairs, (list, tuple)):
            raise ChunkError(f"ranges are a list of [lo, hi] pairs, not {type(pairs).__name__}")
        if len(pairs) > max_ranges:
            raise ChunkError(f"{len(pairs)} ranges are more than the {max_ranges} that one message may list")
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2 or any(type(end) is not int for end in pair):
                raise ChunkError(f"a range is a pair [lo, hi] of integers, not {pair!r:.80}")
        return cls((lo, hi) for lo, hi in pairs)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._spans == other._spans

    def __hash__(self) -> int:
        return hash(self._spans)

    def __repr__(self) -> str:
        return f"Ranges({list(self._spans)!r})"
