"""The way to the aggregator and back: with its real echo at the other end, with nobody, with one that refuses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from edgefed.agent.network_probe import NetworkProbe
from edgefed.coordinator.echo import Echo
from edgefed.devices.network import NetworkProfile
from edgefed.protocol.messages.down import DownMessage, Pong, decode_down
from edgefed.protocol.messages.up import Ping, decode_up
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message, Transport
from edgefed.transport.in_memory import InMemoryBroker
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from tools.mosquitto import RunningMosquitto

TOPICS = Topics("test")
Answer = Callable[[str, Ping, Callable[[str, DownMessage], None]], None]


def echo_of() -> Answer:
    echoes: list[Echo] = []

    def answer(device: str, ping: Ping, tell: Callable[[str, DownMessage], None]) -> None:
        if not echoes:
            echoes.append(Echo(tell))
        echoes[0].answer(device, ping)

    return answer


@contextlib.asynccontextmanager
async def background(*coroutines: object) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]  # type: ignore[call-overload]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def listen_as_aggregator(transport: Transport, answer: Answer) -> None:
    sending: set[asyncio.Task[None]] = set()

    def tell(device: str, message: DownMessage) -> None:
        sending.add(asyncio.ensure_future(transport.publish(TOPICS.device(device, "down"), encode(message))))

    async for event in transport.events():
        if isinstance(event, Message):
            word = decode_up(event.payload)
            assert isinstance(word, Ping)
            answer("a", word, tell)


async def listen_as_device(transport: Transport, probe: NetworkProbe) -> None:
    async for event in transport.events():
        if isinstance(event, Message):
            pong = decode_down(event.payload)
            assert isinstance(pong, Pong)
            probe.hear(pong)


async def measure(broker: InMemoryBroker, answer: Answer | None, **arguments: float) -> NetworkProfile:
    device, aggregator = broker.connect("device"), broker.connect("aggregator")
    await device.subscribe(TOPICS.device("a", "down"))
    await aggregator.subscribe(TOPICS.every_device("up"))
    probe = NetworkProbe(device, TOPICS, "a")
    ends = [listen_as_device(device, probe)]
    if answer is not None:
        ends.append(listen_as_aggregator(aggregator, answer))
    async with background(*ends):
        return await probe.measure(**arguments)  # type: ignore[arg-type]


async def test_latency_and_throughput_of_a_slow_way_are_what_they_are() -> None:
    """Each message takes 20 ms each way: a round trip is at least 40 ms, and everything is waited for."""
    profile = await measure(InMemoryBroker(delay_s=(0.02, 0.02)), echo_of(), burst_bytes=1 << 18)
    assert profile.latency_s.value is not None
    assert profile.latency_s.value >= 0.04
    for way in (profile.uplink_bytes_per_s, profile.downlink_bytes_per_s):
        assert way.value is not None
        assert way.value < (1 << 18) / 0.02, "no message overtakes the delay"
        assert "256 KiB through the broker" in way.method


async def test_answers_that_come_twice_count_once() -> None:
    profile = await measure(InMemoryBroker(duplication=1.0), echo_of(), burst_bytes=1 << 16)
    assert "64 KiB through" in profile.uplink_bytes_per_s.method


async def test_nobody_at_the_other_end_is_a_null_with_the_reason() -> None:
    profile = await measure(InMemoryBroker(), None, patience_s=0.1)
    for figure in (profile.latency_s, profile.uplink_bytes_per_s, profile.downlink_bytes_per_s):
        assert figure.value is None
        assert "no aggregator answered within 0.1 s" in figure.reason


async def test_an_aggregator_that_declines_is_quoted() -> None:
    def refuse(device: str, ping: Ping, tell: Callable[[str, DownMessage], None]) -> None:
        tell(device, Pong(nonce=ping.nonce, sequence=ping.sequence, refused="the fleet is busy"))

    profile = await measure(InMemoryBroker(), refuse)
    assert profile.latency_s.reason == "the aggregator declined: the fleet is busy"


async def test_an_aggregator_that_falls_silent_in_the_middle_leaves_what_came_through() -> None:
    echo = echo_of()

    def answer_small_ones(device: str, ping: Ping, tell: Callable[[str, DownMessage], None]) -> None:
        if len(ping.padding) < 32 << 10 and not ping.answer_bytes:
            echo(device, ping, tell)

    profile = await measure(InMemoryBroker(), answer_small_ones, patience_s=0.2, burst_s=0.1)
    assert profile.latency_s.value is not None
    assert profile.uplink_bytes_per_s.value is not None
    assert "40 KiB through" in profile.uplink_bytes_per_s.method
    assert "not one message" in profile.downlink_bytes_per_s.reason


async def test_answers_to_somebody_elses_pings_are_left_aside() -> None:
    def answer_wrongly(device: str, ping: Ping, tell: Callable[[str, DownMessage], None]) -> None:
        tell(device, Pong(nonce="badbad", sequence=ping.sequence))
        tell(device, Pong(nonce=ping.nonce, sequence=ping.sequence + 1000))

    profile = await measure(InMemoryBroker(), answer_wrongly, patience_s=0.1)
    assert profile.latency_s.value is None


@pytest.mark.parametrize("limit", [16 << 10, 96 << 10, 256 << 10])
async def test_messages_stay_within_the_brokers_limit(limit: int) -> None:
    profile = await measure(InMemoryBroker(max_payload_bytes=limit), echo_of(), burst_bytes=1 << 19)
    assert profile.uplink_bytes_per_s.value is not None, profile.uplink_bytes_per_s.reason


@pytest.mark.broker
async def test_through_a_real_broker(mosquitto: RunningMosquitto) -> None:
    def options(name: str) -> MqttOptions:
        return MqttOptions(host="127.0.0.1", port=mosquitto.port, client_id=name)

    async with connect_mqtt(options("device")) as device, connect_mqtt(options("aggregator")) as aggregator:
        await device.subscribe(TOPICS.device("a", "down"))
        await aggregator.subscribe(TOPICS.every_device("up"))
        probe = NetworkProbe(device, TOPICS, "a")
        async with background(listen_as_device(device, probe), listen_as_aggregator(aggregator, echo_of())):
            profile = await probe.measure()
    for figure in (profile.latency_s, profile.uplink_bytes_per_s, profile.downlink_bytes_per_s):
        assert figure.value is not None, figure.reason
    assert "1024 KiB through" in profile.downlink_bytes_per_s.method
