from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import ChunkError
from edgefed.protocol.chunks import (
    CHUNK_HEADER_BYTES,
    Chunk,
    Ranges,
    decode_chunk,
    encode_chunk,
    is_chunk,
)

SHA256 = hashlib.sha256(b"blob").hexdigest()

spans = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
span_lists = st.lists(spans, max_size=12)


def positions(pairs: Any) -> set[int]:
    return {position for lo, hi in pairs for position in range(lo, hi)}


# ---------------------------------------------------------------------- frames


@given(data=st.binary(min_size=1, max_size=300), offset=st.integers(0, 1 << 40), behind=st.integers(0, 1 << 40))
def test_a_chunk_comes_back_as_it_was(data: bytes, offset: int, behind: int) -> None:
    total_bytes = offset + len(data) + behind
    payload = encode_chunk(SHA256, offset, total_bytes, data)
    assert len(payload) == CHUNK_HEADER_BYTES + len(data)
    assert is_chunk(payload)
    chunk = decode_chunk(payload)
    assert chunk == Chunk(SHA256, offset, total_bytes, memoryview(data))
    assert chunk.end == offset + len(data)


def test_the_frame_is_what_the_format_says() -> None:
    payload = encode_chunk(SHA256, 258, 1000, b"data")
    assert payload == b"EFC1" + bytes.fromhex(SHA256) + (258).to_bytes(8, "big") + (1000).to_bytes(8, "big") + b"data"


def test_decoding_does_not_copy_the_data() -> None:
    payload = encode_chunk(SHA256, 0, 4, b"data")
    assert isinstance(decode_chunk(payload).data, memoryview)
    assert decode_chunk(payload).data.obj is payload


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "at least 52 bytes of header, this one 0"),
        (b"EFC1" + bytes(40), "at least 52 bytes of header, this one 44"),
        (b"EFC2" + bytes(60), "starts with b'EFC1', this message with b'EFC2'"),
        (b'{"type": "join"}' + bytes(60), "starts with b'EFC1'"),
        (b"EFC1" + bytes(48), "at offset 0 has no data"),
        (b"EFC1" + bytes(48) + b"x", "1 bytes at offset 0 does not fit a blob of 0 bytes"),
        (b"EFC1" + bytes(32) + b"\xff" * 16 + b"x", "does not fit a blob"),
        (b"EFC1" + bytes(32) + bytes(8) + b"\xff" * 8 + b"x", "more than any file can hold"),
    ],
)
def test_a_malformed_chunk_is_refused(payload: bytes, said: str) -> None:
    with pytest.raises(ChunkError, match=said):
        decode_chunk(payload)


@given(payload=st.binary(max_size=80))
def test_decoding_any_bytes_gives_a_chunk_or_a_chunk_error(payload: bytes) -> None:
    for candidate in (payload, b"EFC1" + payload):
        try:
            chunk = decode_chunk(candidate)
        except ChunkError:
            continue
        assert 0 <= chunk.offset < chunk.end <= chunk.total_bytes


@pytest.mark.parametrize(
    ("sha256", "offset", "total_bytes", "data"),
    [
        ("", 0, 4, b"data"),
        (SHA256[:-1], 0, 4, b"data"),
        ("../" + SHA256[3:], 0, 4, b"data"),
        (" " * 32 + SHA256[:32], 0, 4, b"data"),
        (SHA256, 0, 4, b""),
        (SHA256, -1, 4, b"data"),
        (SHA256, 1, 4, b"data"),
    ],
)
def test_a_contradictory_chunk_is_not_made(sha256: str, offset: int, total_bytes: int, data: bytes) -> None:
    with pytest.raises(ChunkError):
        encode_chunk(sha256, offset, total_bytes, data)


# ---------------------------------------------------------------------- ranges


def test_ranges_are_sorted_joined_and_without_empty_ones() -> None:
    ranges = Ranges([(9, 12), (0, 4), (20, 20), (4, 6), (10, 11)])
    assert list(ranges) == [(0, 6), (9, 12)]
    assert (len(ranges), ranges.total_bytes, ranges.prefix_bytes, ranges.end) == (2, 9, 6, 12)
    assert repr(ranges) == "Ranges([(0, 6), (9, 12)])"
    assert not Ranges()
    assert (Ranges().end, Ranges([(3, 4)]).prefix_bytes) == (0, 0)


@given(first=span_lists, second=span_lists)
def test_union_and_subtraction_are_those_of_sets(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    a, b = Ranges(first), Ranges(second)
    for result, expected in [
        (a, positions(first)),
        (a.union(b), positions(first) | positions(second)),
        (a.subtract(b), positions(first) - positions(second)),
    ]:
        assert positions(result) == expected
        assert result.total_bytes == len(expected)
        assert is_canonical(result)
        assert result == Ranges(reversed(list(result)))
        assert hash(result) == hash(Ranges(list(result)))


@given(first=span_lists, span=spans)
def test_adding_one_range_is_the_union_with_it(first: list[tuple[int, int]], span: tuple[int, int]) -> None:
    before = Ranges(first)
    assert before.add(*span) == before.union(Ranges([span]))
    assert before == Ranges(first)


@given(received=span_lists, total_bytes=st.integers(0, 90))
def test_missing_is_what_is_not_there(received: list[tuple[int, int]], total_bytes: int) -> None:
    missing = Ranges(received).missing(total_bytes)
    assert positions(missing) == set(range(total_bytes)) - positions(received)
    assert is_canonical(missing)


@given(held=span_lists, chunk_bytes=st.integers(1, 20))
def test_chunks_cover_each_position_once_and_in_order(held: list[tuple[int, int]], chunk_bytes: int) -> None:
    pieces = list(Ranges(held).chunked(chunk_bytes))
    assert all(0 < hi - lo <= chunk_bytes for lo, hi in pieces)
    assert [position for lo, hi in pieces for position in range(lo, hi)] == sorted(positions(held))


@given(held=span_lists)
def test_ranges_come_back_from_a_message(held: list[tuple[int, int]]) -> None:
    ranges = Ranges(held)
    assert Ranges.from_list(ranges.to_list()) == ranges
    assert ranges.to_list(2) == ranges.to_list()[:2]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (None, "a list of \\[lo, hi\\] pairs, not NoneType"),
        ("ab", "not str"),
        ([[0]], "a pair \\[lo, hi\\] of integers"),
        ([[0, 1, 2]], "a pair"),
        ([[0, 1.5]], "a pair"),
        ([[False, True]], "a pair"),
        ([{"lo": 0}], "a pair"),
        ([[4, 2]], "is not a range"),
        ([[-1, 2]], "is not a range"),
        ([[i * 2, i * 2 + 1] for i in range(1025)], "1025 ranges are more than the 1024"),
    ],
)
def test_ranges_that_another_machine_got_wrong_are_refused(pairs: Any, said: str) -> None:
    with pytest.raises(ChunkError, match=said):
        Ranges.from_list(pairs)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ChunkError, match="not a range"):
        Ranges().add(3, 2)
    with pytest.raises(ValueError, match="at least 1 byte"):
        list(Ranges([(0, 4)]).chunked(0))


def is_canonical(ranges: Ranges) -> bool:
    pairs = list(ranges)
    return all(lo < hi for lo, hi in pairs) and all(a[1] < b[0] for a, b in itertools.pairwise(pairs))
