"""A word with the broker and the aggregator in the device's name, which nothing remembers afterwards.

It asks as `edgefed profile` does: one ping on the device's `up` topic, which the aggregator answers on `down`. So a
device that may not speak or hear there is found out, and so are clocks that differ, since answers are signed with the
time. Brokers tell of forbidden messages only in MQTT 5, and Mosquitto never tells of forbidden subscriptions.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgefed.agent.options import AgentOptions
from edgefed.doctor.broker_certificate import speaks_tls
from edgefed.doctor.findings import Board, Finding, note, ok, problem
from edgefed.errors import BrokerRefused, BrokerUnreachable, ConfigError, Disconnected, MessageError
from edgefed.protocol.messages.down import Pong, decode_down
from edgefed.protocol.messages.retained import (
    AggregatorState,
    DeviceState,
    decode_aggregator_state,
    decode_device_state,
)
from edgefed.protocol.messages.up import Ping
from edgefed.protocol.messages.wire import encode, is_signed
from edgefed.protocol.topics import Topics
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.signatures import Signed, Verifier, read_signer, read_verifier
from edgefed.transport.base import Message, Transport
from edgefed.transport.mqtt import MqttTransport, connect_mqtt
from edgefed.transport.mqtt_options import MqttOptions
from edgefed.transport.tls_problems import explain_unreachable
from edgefed.waiting import wait_at_most

__all__ = ["converse"]

_ANSWER_S = 3.0
_DELIVERY_S = 10.0
_MUCH_SKEW_S = 60.0
_AGREE = "all members of a fleet have to agree on [broker] signed, and have certificates of one authority"


@dataclass(slots=True)
class _Heard:
    """What came in: the states that the broker keeps, and the aggregator's answer; and why others do not count."""

    nonce: str
    aggregator: AggregatorState | None = None
    device: DeviceState | None = None
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    distrusted: dict[str, str] = field(default_factory=dict)
    skew_s: float | None = None
    aggregator_signs: bool = False


async def converse(board: Board, mqtt: MqttOptions) -> list[Finding]:
    """Returns what the broker and the aggregator answer to the device.

    Args:
        board: whose name it is done in.
        mqtt: the connection.
    """
    assert board.options is not None
    try:
        async with connect_mqtt(mqtt) as transport:
            findings = [_about_limit(board.options, transport)]
            return findings + await _talk(board.options, transport)
    except BrokerUnreachable as error:
        if not mqtt.uses_tls and await asyncio.to_thread(speaks_tls, mqtt.host, mqtt.port):
            remedy = "name the fleet's authority in [broker] tls_ca, and the device's tls_certificate and tls_key"
            return [problem(f"{mqtt.address} speaks TLS, and agent.toml names no tls_ca", remedy)]
        cause = error.__cause__ or error
        return [problem(f"no MQTT answer: {cause}", explain_unreachable(mqtt, cause, board.now()))]
    except BrokerRefused as error:
        return [problem(str(error), _ask_the_operator(board.options))]
    except ConfigError as error:
        return [problem(str(error), "see the check of the certificate")]


def _about_limit(options: AgentOptions, transport: MqttTransport) -> Finding:
    limit = transport.max_payload_bytes
    said = f"the broker takes the connection (MQTT), and messages of up to {limit} bytes"
    if limit < options.broker.max_payload_bytes:
        return note(
            f"{said}; agent.toml allows {options.broker.max_payload_bytes}, and the agent keeps to the broker's"
        )
    return ok(said)


async def _talk(options: AgentOptions, transport: Transport) -> list[Finding]:
    topics = Topics(options.fleet)
    heard = _Heard(nonce=secrets.token_hex(8))
    listener = asyncio.create_task(_listen(transport, _hearing(options, topics, heard)), name="listen")
    try:
        for topic in (topics.device(options.device, "down"), topics.device(options.device, "state")):
            await transport.subscribe(topic)
        await transport.subscribe(topics.aggregator_state)
        started_s = time.perf_counter()
        await _ping(options, topics, transport, heard.nonce)
        with suppress(asyncio.TimeoutError):
            await wait_at_most(heard.answered.wait(), _ANSWER_S)
        took_s = time.perf_counter() - started_s
    except (BrokerRefused, Disconnected) as error:
        return [
            problem(
                f"the broker lets the device in, and not speak: {error.__cause__ or error}", _ask_the_operator(options)
            )
        ]
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
    return [
        _about_aggregator(options, heard, took_s),
        *_about_kept(topics, options, heard),
        *_about_clocks(heard),
        *_about_agent(topics, options, heard),
    ]


async def _listen(transport: Transport, hear: Callable[[Message], None]) -> None:
    async for event in transport.events():
        if isinstance(event, Message):
            with suppress(MessageError):
                hear(event)


def _hearing(options: AgentOptions, topics: Topics, heard: _Heard) -> Callable[[Message], None]:
    """Returns what takes a message in, or, as the agent does, leaves aside what its author has not signed."""
    own_state = topics.device(options.device, "state")
    verifier = _verifier(options)

    def hear(message: Message) -> None:
        if not message.payload:  # what the broker kept was removed
            return
        author = Identity("device", options.device) if message.topic == own_state else AGGREGATOR
        now_s = time.time()
        signed = _checked(message, author, verifier, now_s, heard)
        heard.aggregator_signs |= author == AGGREGATOR and is_signed(message.payload)
        if message.topic == topics.aggregator_state:
            heard.aggregator = decode_aggregator_state(signed.payload)
        elif message.topic == own_state:
            heard.device = decode_device_state(signed.payload)
        else:
            answer = decode_down(signed.payload)
            if isinstance(answer, Pong) and answer.nonce == heard.nonce:
                heard.skew_s = None if verifier is None else signed.at_unix_s - now_s
                heard.answered.set()

    return hear


def _verifier(options: AgentOptions) -> Verifier | None:
    broker = options.broker
    if not broker.signed:
        return None
    return read_verifier(Path(broker.tls_ca), Path(broker.tls_crl) if broker.tls_crl else None)


def _checked(message: Message, author: Identity, verifier: Verifier | None, now_s: float, heard: _Heard) -> Signed:
    if verifier is None:
        return Signed(message.payload, now_s)
    try:
        return verifier.verify(message.topic, message.payload, author, now_s)
    except MessageError as error:
        heard.distrusted[message.topic] = str(error)
        raise


async def _ping(options: AgentOptions, topics: Topics, transport: Transport, nonce: str) -> None:
    topic = topics.device(options.device, "up")
    payload = encode(Ping(nonce=nonce, sequence=1, answer_bytes=0, padding=""))
    if options.broker.signed:
        signer = read_signer(Path(options.broker.tls_certificate), Path(options.broker.tls_key))
        payload = signer.sign(topic, payload, time.time())
    await transport.publish(topic, payload, timeout_s=_DELIVERY_S)


def _about_aggregator(options: AgentOptions, heard: _Heard, took_s: float) -> Finding:
    if heard.aggregator_signs and not options.broker.signed:
        return problem(
            "the aggregator signs what it says, and listens to nobody who does not; here [broker] signed is false",
            _AGREE,
        )
    there = heard.aggregator is not None and heard.aggregator.status == "online"
    if heard.answered.is_set():
        return ok(f"the aggregator answers after {took_s * 1e3:.0f} ms")
    topics = Topics(options.fleet)
    if why := heard.distrusted.get(topics.device(options.device, "down")):
        return problem(f"an answer on this device's topic is not listened to: {why}", _AGREE)
    if there:
        return note(
            f"an aggregator is online, and has not answered this device within {_ANSWER_S:g} s",
            f"do both agree on [broker] signed (here {str(options.broker.signed).lower()}), and do the broker's rules "
            "name this device? The aggregator's log (edgefed -v aggregator) says whom it does not listen to",
        )
    if heard.aggregator is not None:
        return note(f"the aggregator of this fleet is {heard.aggregator.status}", "the agent waits until it is back")
    if topics.aggregator_state in heard.distrusted:
        return note("nothing that can be trusted says that the fleet has an aggregator", "the agent waits for one")
    return note("the broker knows of no aggregator of the fleet", "the agent waits: start `edgefed aggregator`")


def _about_kept(topics: Topics, options: AgentOptions, heard: _Heard) -> list[Finding]:
    """Returns what is said of states that the broker keeps, and that are not of whom they name."""
    whose = {topics.aggregator_state: "the aggregator", topics.device(options.device, "state"): "this device"}
    return [
        note(f"what the broker keeps as the state of {author} is not listened to: {heard.distrusted[topic]}", _AGREE)
        for topic, author in whose.items()
        if topic in heard.distrusted
    ]


def _about_clocks(heard: _Heard) -> list[Finding]:
    if heard.skew_s is None:
        return []
    if abs(heard.skew_s) <= _MUCH_SKEW_S:
        return [ok(f"this machine's clock and the aggregator's differ by {abs(heard.skew_s):.1f} s")]
    ahead = "ahead of" if heard.skew_s < 0 else "behind"
    said = f"this machine's clock is {abs(heard.skew_s):.0f} s {ahead} the aggregator's"
    return [note(said, "set the wrong one right: timedatectl set-ntp true")]


def _about_agent(topics: Topics, options: AgentOptions, heard: _Heard) -> list[Finding]:
    state = heard.device
    if state is None and topics.device(options.device, "state") in heard.distrusted:
        return []
    if state is None:
        return [ok("the broker knows of no agent of this device")]
    if state.status in ("lost", "disconnected"):
        return [ok(f"the device's agent is not connected now ({state.status})")]
    where = f"as process {state.pid} on {state.host}" if state.host else "from somewhere"
    return [ok(f"the device's agent is connected, {where}; its state: {state.status}")]


def _ask_the_operator(options: AgentOptions) -> str:
    return (
        f"does the fleet's operator know {options.device} (`edgefed fleet list`), and has the broker its newest rules "
        "(`edgefed fleet broker-config`, then let it read them)? Without certificates: user name, password and ACL"
    )
