from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.protocol.chunks import encode_chunk
from edgefed.transport.base import ConnectionLost, Message
from edgefed.transport.in_memory import InMemoryBroker, InMemoryTransport
from edgefed.transport.topic_filter import topic_matches

CHUNK = encode_chunk("ab" * 32, 0, 100, b"data")


async def received(transport: InMemoryTransport, end: bytes = b"end") -> list[bytes]:
    """Everything up to the end marker."""
    payloads: list[bytes] = []
    async for event in transport.events():
        if isinstance(event, Message):
            if event.payload == end:
                break
            payloads.append(event.payload)
    return payloads


async def send_numbered(broker: InMemoryBroker, count: int, *, chunks: bool, retain: bool = False) -> list[bytes]:
    """Send so many messages and return what arrived."""
    async with broker.connect("a") as a, broker.connect("b") as b:
        await b.subscribe("x")
        for number in range(count):
            body = number.to_bytes(4, "big")
            payload = encode_chunk("ab" * 32, number, count, body[3:]) if chunks else body
            await a.publish("x", payload, retain=retain)
        await a.publish("x", b"end")
        return await received(b)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a", False),
        ("a", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a/", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("+/b", "a/b", True),
        ("+", "a", True),
        ("#", "a/b/c", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/+/c/#", "a/b/c", True),
        ("a/+/c/#", "a/b/d", False),
        ("#", "$SYS/broker", False),
        ("+/broker", "$SYS/broker", False),
        ("$SYS/#", "$SYS/broker", True),
    ],
)
def test_filters_match_as_mqtt_says(topic_filter: str, topic: str, matches: bool) -> None:
    assert topic_matches(topic_filter, topic) is matches


async def test_loss_takes_chunks_and_spares_control_and_retained_messages() -> None:
    assert len(await send_numbered(InMemoryBroker(loss=0.3), 500, chunks=False)) == 500
    assert len(await send_numbered(InMemoryBroker(loss=0.3), 500, chunks=True, retain=True)) == 500
    broker = InMemoryBroker(loss=0.3)
    arrived = await send_numbered(broker, 500, chunks=True)
    assert 250 < len(arrived) < 450
    assert broker.dropped == 500 - len(arrived)


async def test_what_is_unreliable_can_be_said() -> None:
    broker = InMemoryBroker(loss=1.0, unreliable=lambda message: message.payload < b"\0\0\0\x05")
    assert await send_numbered(broker, 8, chunks=False) == [number.to_bytes(4, "big") for number in (5, 6, 7)]


async def test_duplication_repeats_any_message_and_loses_none() -> None:
    arrived = Counter(await send_numbered(InMemoryBroker(duplication=0.4), 500, chunks=False))
    assert set(arrived) == {number.to_bytes(4, "big") for number in range(500)}
    assert set(arrived.values()) == {1, 2}


async def test_reordering_moves_chunks_and_only_chunks() -> None:
    control = await send_numbered(InMemoryBroker(reorder=0.5), 200, chunks=False)
    assert control == sorted(control)
    in_order = await send_numbered(InMemoryBroker(), 200, chunks=True)
    shuffled = await send_numbered(InMemoryBroker(reorder=0.5), 200, chunks=True)
    assert shuffled != in_order
    assert sorted(shuffled) == sorted(in_order)


async def test_delay_keeps_order() -> None:
    arrived = await send_numbered(InMemoryBroker(delay_s=(0.0, 0.002)), 100, chunks=True)
    assert arrived == sorted(arrived)
    assert len(arrived) == 100


@given(seed=st.integers(0, 1 << 32))
def test_the_same_seed_makes_the_same_trouble(seed: int) -> None:
    def run() -> list[bytes]:
        broker = InMemoryBroker(seed=seed, loss=0.2, duplication=0.2, reorder=0.2)
        return asyncio.run(send_numbered(broker, 30, chunks=True))

    assert run() == run()


async def test_a_queue_that_overflows_drops_and_counts() -> None:
    broker = InMemoryBroker(queue_limit=10)
    async with broker.connect("a") as a, broker.connect("b") as b:
        await b.subscribe("x")
        for number in range(30):
            await a.publish("x", b"%d" % number)
        assert broker.dropped == 21  # the news of the connection takes one place
        events = b.events()
        payloads = [event.payload async for event in _take(events, 10) if isinstance(event, Message)]
        assert payloads == [b"%d" % number for number in range(9)]


async def test_a_dropped_client_stays_away_until_restored() -> None:
    broker = InMemoryBroker()
    async with broker.connect("a") as a, broker.connect("b") as b:
        await b.subscribe("x")
        broker.drop("b")
        broker.drop("b")
        await a.publish("x", b"meanwhile")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(b.subscribe("y"))), 0.02)
        assert [type(event).__name__ async for event in _take(b.events(), 2)] == ["Connected", "ConnectionLost"]
        broker.restore("b")
        events = [event async for event in _take(b.events(), 2)]
        assert events[1] == Message("x", b"meanwhile")


async def test_a_takeover_is_called_one() -> None:
    broker = InMemoryBroker()
    async with broker.connect("same") as first, broker.connect("same"):
        events = [event async for event in _take(first.events(), 2)]
        assert events[1] == ConnectionLost("another client connected with the same client id", taken_over=True)
        assert not first.is_connected


async def _take(events: object, count: int):  # type: ignore[no-untyped-def]
    async for event in events:  # type: ignore[attr-defined]
        yield event
        count -= 1
        if count == 0:
            return


async def test_a_chunk_is_unreliable_by_default_only_as_a_chunk() -> None:
    assert await send_numbered(InMemoryBroker(loss=1.0), 3, chunks=True) == []
    async with InMemoryBroker(loss=1.0).connect("a") as a:
        await a.subscribe("x")
        await a.publish("x", b"not " + CHUNK)
        await a.publish("x", b"end")
        assert await received(a) == [b"not " + CHUNK]
