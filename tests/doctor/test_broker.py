"""The way to a real Mosquitto, with and without certificates."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from edgefed.coordinator.echo import Echo
from edgefed.doctor import conversation
from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board
from edgefed.protocol.messages.down import DownMessage
from edgefed.protocol.messages.retained import AggregatorState, DeviceState
from edgefed.protocol.messages.up import Ping, decode_up
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, BROKER
from edgefed.security.mosquitto_files import MosquittoOptions, write_mosquitto
from edgefed.security.signatures import Verifier, read_signer, read_verifier
from edgefed.transport.base import ConnectionLost, Message, Transport
from tests.security.secured import NAME, Secured, device, now
from tools.mosquitto import configured_mosquitto, free_port, running_mosquitto

pytestmark = pytest.mark.broker

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]
TOPICS = Topics(NAME)
BOARD = device("board-07")
TLS = """\
[broker]
host = "127.0.0.1"
port = {port}
tls_ca = "{place}/ca.pem"
tls_certificate = "{place}/certificate.pem"
tls_key = "{place}/key.pem"
"""
PLAIN = '[broker]\nhost = "{}"\nport = {}\n'


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("fleet"))
    made.enroll(BOARD)
    with made.running():
        yield made


def told(examined: Examined, status: str) -> str:
    return " | ".join(f"{one.seen} → {one.remedy}" for one in examined.findings if one.status == status)


def tls(secured: Secured, place: Path | None = None, *, signed: bool = False) -> str:
    text = TLS.format(port=secured.port, place=place or secured.fleet.place(BOARD))
    return text + "signed = true\n" if signed else text


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine is no aggregator that does not answer."""
    monkeypatch.setattr(conversation, "_ANSWER_S", 60.0)


@contextlib.asynccontextmanager
async def answering_aggregator(secured: Secured, *, ahead_s: float | None = None) -> AsyncIterator[Verifier]:
    """Answers pings as the aggregator does: with its own echo, and signed where `ahead_s` says by which clock."""
    place = secured.fleet.place(AGGREGATOR)
    signer = read_signer(place / "certificate.pem", place / "key.pem")
    verifier = read_verifier(place / "ca.pem")
    async with secured.connect(AGGREGATOR) as transport:
        online = encode(AggregatorState(status="online", instance="one"))
        if ahead_s is not None:
            online = signer.sign(TOPICS.aggregator_state, online, time.time() + ahead_s, time.time())
        await transport.publish(TOPICS.aggregator_state, online, retain=True)
        await transport.subscribe(TOPICS.every_device("up"))
        answers: list[tuple[str, DownMessage]] = []
        echo = Echo(lambda name, message: answers.append((name, message)))

        async def answer() -> None:
            async for event in transport.events():
                if not isinstance(event, Message):
                    continue
                payload = event.payload
                if ahead_s is not None:
                    payload = verifier.verify(event.topic, payload, BOARD, time.time()).payload
                ping = decode_up(payload)
                assert isinstance(ping, Ping)
                echo.answer(BOARD.name, ping)
                topic = TOPICS.device(BOARD.name, "down")
                said = encode(answers.pop()[1])
                await transport.publish(
                    topic, said if ahead_s is None else signer.sign(topic, said, time.time() + ahead_s)
                )

        task = asyncio.create_task(answer())
        try:
            yield verifier
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await transport.publish(TOPICS.aggregator_state, b"", retain=True)


@pytest.mark.usefixtures("_patient")
async def test_a_whole_way_to_the_aggregator(secured: Secured, board: MakeBoard, look: Look) -> None:
    async with answering_aggregator(secured):
        examined = await asyncio.to_thread(look, board(tls(secured)), "broker")
    assert examined.status == "ok", examined
    assert "the aggregator answers after" in told(examined, "ok")
    assert "TLSv1.3" in told(examined, "ok")


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize(
    ("ahead_s", "status", "said"),
    [
        (0.0, "ok", "and the aggregator's differ by"),
        (300.0, "note", " s behind the aggregator's"),
    ],
)
async def test_signed_answers_tell_the_aggregators_clock(
    secured: Secured, board: MakeBoard, look: Look, ahead_s: float, status: str, said: str
) -> None:
    async with answering_aggregator(secured, ahead_s=ahead_s):
        examined = await asyncio.to_thread(look, board(tls(secured, signed=True)), "broker")
    assert "the aggregator answers after" in told(examined, "ok")
    assert said in told(examined, status)


async def test_an_aggregator_that_does_not_sign(secured: Secured, board: MakeBoard, look: Look) -> None:
    topic = TOPICS.device(BOARD.name, "down")
    async with secured.connect(AGGREGATOR) as transport:
        # Retained, so that it is there in time, whatever the machine's load.
        await transport.publish(topic, b'{"type":"pong","nonce":"0","sequence":1}', retain=True)
        try:
            examined = await asyncio.to_thread(look, board(tls(secured, signed=True)), "broker")
        finally:
            await transport.publish(topic, b"", retain=True)
    assert "is not signed" in told(examined, "problem")
    assert "[broker] signed" in told(examined, "problem")


async def test_a_device_that_does_not_sign_in_a_fleet_that_does(secured: Secured, board: MakeBoard, look: Look) -> None:
    place = secured.fleet.place(AGGREGATOR)
    signer = read_signer(place / "certificate.pem", place / "key.pem")
    state = encode(AggregatorState(status="finished", instance="i"))
    async with secured.connect(AGGREGATOR) as aggregator:
        signed = signer.sign(TOPICS.aggregator_state, state, time.time(), time.time())
        await aggregator.publish(TOPICS.aggregator_state, signed, retain=True)
        try:
            examined = await asyncio.to_thread(look, board(tls(secured)), "broker")
        finally:
            await aggregator.publish(TOPICS.aggregator_state, b"", retain=True)
    assert "listens to nobody who does not; here [broker] signed is false" in told(examined, "problem")


async def test_states_that_nobody_has_signed_are_not_believed(secured: Secured, board: MakeBoard, look: Look) -> None:
    own = TOPICS.device(BOARD.name, "state")
    async with secured.connect(AGGREGATOR) as aggregator, secured.connect(BOARD) as agent:
        await aggregator.publish(
            TOPICS.aggregator_state, encode(AggregatorState(status="online", instance="i")), retain=True
        )
        await agent.publish(own, encode(DeviceState(status="training", instance="i", host="elsewhere")), retain=True)
        try:
            examined = await asyncio.to_thread(look, board(tls(secured, signed=True)), "broker")
        finally:
            await aggregator.publish(TOPICS.aggregator_state, b"", retain=True)
            await agent.publish(own, b"", retain=True)
    assert "nothing that can be trusted says that the fleet has an aggregator" in told(examined, "note")
    for author in ("the aggregator", "this device"):
        assert f"keeps as the state of {author} is not listened to: it is not signed" in told(examined, "note")
    assert "elsewhere" not in str(examined)


async def test_a_state_that_the_device_has_signed_is_shown(secured: Secured, board: MakeBoard, look: Look) -> None:
    own, place = TOPICS.device(BOARD.name, "state"), secured.fleet.place(BOARD)
    signer = read_signer(place / "certificate.pem", place / "key.pem")
    state = encode(DeviceState(status="training", instance="i", host="h", pid=7))
    async with secured.connect(BOARD) as agent:
        await agent.publish(own, signer.sign(own, state, time.time(), time.time()), retain=True)
        try:
            examined = await asyncio.to_thread(look, board(tls(secured, signed=True)), "broker")
        finally:
            await agent.publish(own, b"", retain=True)
    assert "connected, as process 7 on h; its state: training" in told(examined, "ok")


async def test_a_running_agent_does_not_notice(secured: Secured, board: MakeBoard, look: Look) -> None:
    state = TOPICS.device(BOARD.name, "state")
    heard: list[object] = []

    async def listen(transport: Transport) -> None:
        heard.extend([event async for event in transport.events()])

    async with secured.connect(BOARD, client_id=f"{NAME}-board-07-{secrets.token_hex(4)}") as agent:
        await agent.subscribe(state)
        task = asyncio.create_task(listen(agent))
        await agent.publish(state, encode(DeviceState(status="training", instance="i", host="h", pid=7)), retain=True)
        examined = await asyncio.to_thread(look, board(tls(secured)), "broker")
        await agent.publish(state, b"", retain=True)
        await agent.close()
        await task
    assert "connected, as process 7 on h; its state: training" in told(examined, "ok")
    assert not any(isinstance(event, ConnectionLost) for event in heard)
    assert sum(isinstance(event, Message) and event.topic == state for event in heard) <= 2, "its own words only"


def test_without_an_aggregator_it_is_a_note(secured: Secured, board: MakeBoard, look: Look) -> None:
    examined = look(board(tls(secured)), "broker")
    assert examined.status == "note"
    assert "knows of no aggregator" in told(examined, "note")


def test_a_device_that_the_broker_was_not_told_of(secured: Secured, board: MakeBoard, look: Look) -> None:
    place = secured.enroll(device("newcomer"))
    examined = look(board(tls(secured, place), device="newcomer"), "broker")
    assert "lets the device in, and not speak" in told(examined, "problem")
    assert "fleet broker-config" in told(examined, "problem")


def test_a_revoked_certificate(secured: Secured, board: MakeBoard, look: Look) -> None:
    place = secured.enroll(device("gone"))
    secured.fleet.revoke(device("gone"), now=now())
    secured.write()
    secured.broker.reload()
    examined = look(board(tls(secured, place)), "broker")
    assert "may have been revoked" in told(examined, "problem")


def test_a_broker_of_another_fleet(secured: Secured, board: MakeBoard, look: Look, tmp_path: Path) -> None:
    other = FleetDirectory.create(tmp_path / "o", NAME, hosts=["b"], lifetimes=Lifetimes(), now=now())
    place = other.enroll(BOARD, days=9, now=now())
    examined = look(board(tls(secured, place)), "broker")
    assert "is not of the authority in" in told(examined, "problem")


def test_a_broker_whose_certificate_does_not_count_yet(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    made = Secured(tmp_path)
    place = made.enroll(BOARD)
    tomorrow = now() + timedelta(days=1)
    made.fleet.enroll(BROKER, days=30, now=tomorrow, renew=True)
    # Written by somebody whose clock is a day ahead; Mosquitto itself does not look.
    options = MosquittoOptions(installed_at=made.files, bind="127.0.0.1", port=made.port)
    write_mosquitto(made.fleet, made.files, options, tomorrow)
    with configured_mosquitto(made.files / "mosquitto.conf", made.port):
        met = board(tls(made, place))
        assert "is the clock right?" in told(look(met, "broker"), "problem")
        assert "the broker's begins" in told(look(met, "clock"), "problem")


def test_before_it_is_enrolled_the_way_is_looked_at_as_far_as_it_goes(
    secured: Secured, board: MakeBoard, look: Look, tmp_path: Path
) -> None:
    met = board(tls(secured, tmp_path / "nothing"))
    examined = look(met, "broker")
    assert [finding.status for finding in examined.findings] == ["ok", "note"]
    assert "has no certificate yet" in told(examined, "note")
    met = board(tls(secured, tmp_path / "nothing"), now=lambda: now() - timedelta(days=99))
    assert "the broker's begins" in told(look(met, "clock"), "problem")


def test_a_name_that_is_none(board: MakeBoard, look: Look) -> None:
    examined = look(board(PLAIN.format("no-such-host.invalid", 1883)), "broker")
    assert "cannot be resolved" in told(examined, "problem")


def test_nobody_listens(board: MakeBoard, look: Look) -> None:
    examined = look(board(PLAIN.format("127.0.0.1", free_port())), "broker")
    assert "nobody listens there" in told(examined, "problem")


def test_a_port_with_tls_and_a_configuration_without(secured: Secured, board: MakeBoard, look: Look) -> None:
    examined = look(board(PLAIN.format("127.0.0.1", secured.port)), "broker")
    assert "speaks TLS, and agent.toml names no tls_ca" in told(examined, "problem")


def test_a_port_without_tls_and_a_configuration_with(secured: Secured, board: MakeBoard, look: Look) -> None:
    with running_mosquitto() as plain:
        text = TLS.format(port=plain.port, place=secured.fleet.place(BOARD))
        examined = look(board(text), "broker")
    assert "TLS" in told(examined, "problem")
    assert "8883" in told(examined, "problem")


def test_somebody_else_who_answers(board: MakeBoard, look: Look) -> None:
    def hang_up(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                server.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=hang_up, args=(server,))
        thread.start()
        examined = look(board(PLAIN.format("127.0.0.1", server.getsockname()[1])), "broker")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "no MQTT answer" in told(examined, "problem")


def test_a_user_whom_the_broker_does_not_know(board: MakeBoard, look: Look) -> None:
    with running_mosquitto(anonymous=False) as broker:
        examined = look(board(PLAIN.format("127.0.0.1", broker.port)), "broker")
    assert "refused" in told(examined, "problem")
    assert "user name, password" in told(examined, "problem")


def test_a_broker_that_takes_less_than_the_agent_would_send(board: MakeBoard, look: Look) -> None:
    with running_mosquitto(extra_config="max_packet_size 20000") as broker:
        examined = look(board(PLAIN.format("127.0.0.1", broker.port)), "broker")
    assert "agent.toml allows 262144" in told(examined, "note")


def test_a_broker_whose_certificate_has_ended_may_speak_of_the_clock(
    secured: Secured, board: MakeBoard, look: Look
) -> None:
    examined = look(board(tls(secured), now=lambda: now() + timedelta(days=800)), "clock")
    assert "the clock may be ahead" in told(examined, "note")
