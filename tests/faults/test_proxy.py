"""The fault proxy does what it says, or the tests behind it would prove nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.faults.proxy import FaultProxy


@contextlib.asynccontextmanager
async def echoing() -> AsyncIterator[tuple[int, asyncio.Queue[str]]]:
    """A server that says back what it hears: its port, and what became of its connections."""
    ends: asyncio.Queue[str] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            ends.put_nowait("closed")
        except ConnectionError:
            ends.put_nowait("broken")
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], ends
    finally:
        server.close()


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    writer.write(data)
    await writer.drain()
    return await reader.readexactly(len(data))


async def hears_the_end(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


async def test_it_carries_every_byte_both_ways_and_counts_them() -> None:
    data = bytes(range(256)) * 1000
    async with echoing() as (port, _), FaultProxy(port) as proxy, connected(proxy) as (reader, writer):
        writing = asyncio.create_task(say(reader, writer, data))
        assert await writing == data
        assert (proxy.up_bytes, proxy.down_bytes) == (len(data), len(data))


async def test_delay_and_bandwidth_are_lower_bounds_on_time() -> None:
    slow = {"delay_s": 0.05, "jitter_s": 0.01, "bytes_per_s": 40_000.0}
    async with echoing() as (port, _), FaultProxy(port, **slow) as proxy, connected(proxy) as (reader, writer):
        started_s = time.monotonic()
        await say(reader, writer, bytes(8000))
        assert time.monotonic() - started_s >= 8000 / 40_000 + 2 * 0.05


async def test_a_cut_is_seen_at_both_ends() -> None:
    async with echoing() as (port, ends), FaultProxy(port) as proxy, connected(proxy) as (reader, writer):
        await say(reader, writer, b"hello")
        proxy.cut()
        assert await hears_the_end(reader)
        assert await ends.get() in ("closed", "broken")


async def test_a_black_hole_holds_everything_back_until_it_is_healed() -> None:
    async with echoing() as (port, ends), FaultProxy(port) as proxy, connected(proxy) as (reader, writer):
        await say(reader, writer, b"hello")
        proxy.black_hole()
        answer = asyncio.create_task(say(reader, writer, b"anybody?"))
        await asyncio.sleep(0.1)
        assert not answer.done()
        assert ends.empty()
        proxy.heal()
        assert await answer == b"anybody?"


async def test_half_open_ends_only_the_servers_end() -> None:
    async with echoing() as (port, ends), FaultProxy(port) as proxy, connected(proxy) as (reader, writer):
        await say(reader, writer, b"hello")
        proxy.half_open()
        assert await ends.get() in ("closed", "broken")
        writer.write(b"anybody?")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)


async def test_who_is_refused_gets_in_once_it_is_healed() -> None:
    async with echoing() as (port, _), FaultProxy(port) as proxy:
        proxy.refuse()
        async with connected(proxy) as (reader, _):
            assert await hears_the_end(reader)
        proxy.heal()
        async with connected(proxy) as (reader, writer):
            assert await say(reader, writer, b"hello") == b"hello"


async def test_the_same_seed_cuts_at_the_same_times() -> None:
    draws = [[FaultProxy(1, seed=seed)._draw.random() for _ in range(3)] for seed in (7, 7, 8)]
    assert draws[0] == draws[1] != draws[2]
