"""What only a real network shows: refusals, limits, versions, silence, processes that die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.errors import BrokerRefused, BrokerUnreachable, ConfigError, Disconnected, PayloadTooLarge
from edgefed.transport.base import Connected, ConnectionLost, Message, Transport, Will
from edgefed.transport.mqtt import MqttOptions, MqttTransport, connect_mqtt
from tools.mosquitto import RunningMosquitto, free_port, running_mosquitto

Read = Callable[[Transport], Any]


def options(port: int, client_id: str = "a", **changes: Any) -> MqttOptions:
    return MqttOptions("127.0.0.1", port, client_id, **{"reconnect_max_s": 0.2, **changes})


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": ""}, "host must not be empty"),
        ({"port": 0}, "port must be within 1 and 65535, not 0"),
        ({"client_id": ""}, "client_id must not be empty"),
        ({"protocol": "4"}, 'protocol is "auto", "5" or "3.1.1", not \'4\''),
        ({"keepalive_s": 0}, "keepalive_s"),
        ({"session_expiry_s": -1}, "session_expiry_s"),
        ({"max_payload_bytes": 10}, "max_payload_bytes must be at least 1024"),
        ({"connect_timeout_s": 0}, "connect_timeout_s"),
        ({"reconnect_max_s": 0}, "reconnect_max_s"),
        ({"password": "x"}, "password without username"),
        ({"tls_cert": "x"}, "tls_cert and tls_key belong together"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MqttOptions(**{"host": "broker", "client_id": "a", **changes})


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(MqttOptions("broker", client_id="a", username="me", password="secret"))


# ---------------------------------------------------------------------- the first connection


async def test_a_wrong_port_is_said_to_be_one() -> None:
    port = free_port()
    with pytest.raises(BrokerUnreachable, match=rf"no broker answers at 127\.0\.0\.1:{port}: .*refused.*is it running"):
        async with connect_mqtt(options(port)):
            pass


async def test_a_name_that_does_not_resolve_is_said_to_be_one() -> None:
    with pytest.raises(BrokerUnreachable, match=r"no broker answers at broker\.invalid:1883"):
        async with connect_mqtt(MqttOptions("broker.invalid", client_id="a")):
            pass


@pytest.mark.broker
async def test_retry_first_waits_for_the_broker(read: Read) -> None:
    port = free_port()
    delays: list[float] = []

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)
        if len(delays) == 3:
            process.restart()

    with running_mosquitto(port) as process:
        process.kill()
        async with connect_mqtt(
            options(port, reconnect_max_s=60), retry_first=True, draw=lambda: 1.0, sleep=sleep
        ) as transport:
            await transport.publish("x", b"")
            reader = read(transport)
            await reader.until(lambda r: r.connects)
    assert delays == [0.5, 1.0, 2.0]


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", path, "me", "right"], check=True, capture_output=True)
    return path


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_wrong_credentials_are_refused(passwords: Path, protocol: Any) -> None:
    with running_mosquitto(anonymous=False, extra_config=f"password_file {passwords}") as process:
        for wrong in ({}, {"username": "me", "password": "wrong"}, {"username": "you", "password": "right"}):
            with pytest.raises(BrokerRefused, match=r"refused client 'a': .*[Nn]ot authorized.*check user name"):
                async with connect_mqtt(options(process.port, protocol=protocol, **wrong), retry_first=True):
                    pass
        right = options(process.port, protocol=protocol, username="me", password="right")
        async with connect_mqtt(right) as transport:
            await transport.publish("x", b"")


@pytest.mark.broker
async def test_a_topic_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("topic write mine\n")
    with running_mosquitto(extra_config=f"acl_file {rules}") as process:
        async with connect_mqtt(options(process.port)) as transport:
            await transport.publish("mine", b"")
            with pytest.raises(BrokerRefused, match="refused a message to yours: Not authorized"):
                await transport.publish("yours", b"")
            await transport.publish("mine", b"")


@pytest.mark.broker
async def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    authority = ["-subj", "/CN=authority", "-days", "2", "-addext", "keyUsage=critical,keyCertSign"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", *authority)
    # Python 3.13 checks strictly: without these two it accepts neither certificate.
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    for name in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed_by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signed_by, "-out", f"{name}.pem")
    config = f"cafile {tmp_path}/ca.pem\ncertfile {tmp_path}/server.pem\nkeyfile {tmp_path}/server.key\n"
    with running_mosquitto(extra_config=config + "require_certificate true") as process:
        certificate = {"tls_cert": str(tmp_path / "client.pem"), "tls_key": str(tmp_path / "client.key")}
        trusting = options(process.port, tls_ca=str(tmp_path / "ca.pem"), **certificate)
        async with connect_mqtt(trusting) as transport:
            await transport.subscribe("x")
            payload = os.urandom(transport.max_payload_bytes)
            await asyncio.gather(*(transport.publish("x", payload) for _ in range(8)))
            arrived = 0
            async for event in transport.events():
                if isinstance(event, Message):
                    assert event.payload == payload
                    arrived += 1
                    if arrived == 8:
                        break
        with pytest.raises(BrokerUnreachable, match="certificate verify failed"):
            async with connect_mqtt(options(process.port, tls=True)):
                pass
        with pytest.raises(BrokerUnreachable, match=r"do host, port and TLS fit it\?"):
            async with connect_mqtt(options(process.port, connect_timeout_s=2)):
                pass
        with pytest.raises(ConfigError, match=r"tls_ca: there is no file .*missing\.pem"):
            async with connect_mqtt(options(process.port, tls_ca=str(tmp_path / "missing.pem"))):
                pass


# ---------------------------------------------------------------------- limits


@pytest.mark.broker
async def test_the_packet_limit_that_mqtt_5_tells_is_kept(read: Read) -> None:
    with running_mosquitto(extra_config="max_packet_size 20000") as process:
        async with connect_mqtt(options(process.port)) as transport:
            reader = read(transport)
            await transport.subscribe("x" * 200)
            assert transport.max_payload_bytes == 20_000 - 1024
            with pytest.raises(PayloadTooLarge, match="19000 bytes is over the broker's limit of 18976 bytes"):
                await transport.publish("x" * 200, bytes(19_000))
            await transport.publish("x" * 200, bytes(transport.max_payload_bytes))
            await reader.until(lambda r: r.messages)
            assert reader.connects[0].max_payload_bytes == 18_976
            assert not reader.losses


@pytest.mark.broker
async def test_a_packet_limit_that_nobody_tells_ends_in_a_clear_error() -> None:
    with running_mosquitto(extra_config="max_packet_size 20000") as process:
        async with connect_mqtt(options(process.port, protocol="3.1.1", reconnect_max_s=0.01)) as transport:
            with pytest.raises(Disconnected, match=r"a message of 30000 bytes to x .*set max_payload_bytes"):
                await transport.publish("x", bytes(30_000))
            await transport.publish("x", bytes(10_000))


@pytest.mark.broker
async def test_a_message_limit_that_nobody_tells_ends_in_a_clear_error() -> None:
    with running_mosquitto(extra_config="message_size_limit 20000") as process:
        async with connect_mqtt(options(process.port, reconnect_max_s=0.01)) as transport:
            # Mosquitto answers with a PUBACK whose reason MQTT does not allow there, and paho gives the connection up.
            with pytest.raises(Disconnected, match=r"a message of 30000 bytes to x .*set max_payload_bytes"):
                await transport.publish("x", bytes(30_000))
            await transport.publish("x", bytes(20_000))


# ---------------------------------------------------------------------- other clients, dead clients, dead links


@pytest.mark.broker
async def test_two_clients_with_one_id_do_not_fight_in_a_tight_loop(mosquitto: RunningMosquitto, read: Read) -> None:
    delays: list[float] = []
    asked = asyncio.Event()

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)
        asked.set()
        await asyncio.Event().wait()

    patient = options(mosquitto.port, "same", reconnect_max_s=60)
    async with connect_mqtt(patient, sleep=sleep) as first:
        reader = read(first)
        async with connect_mqtt(patient) as second:
            await asyncio.wait_for(asked.wait(), 10)
            await reader.until(lambda r: r.losses)
            assert delays[0] >= 0.25
            await second.publish("x", b"")
    fighting = options(mosquitto.port, "same", reconnect_max_s=1.0)
    async with connect_mqtt(fighting) as first, connect_mqtt(fighting) as second:
        at_first, at_second = read(first), read(second)
        await asyncio.sleep(2.0)
        assert len(at_first.losses) + len(at_second.losses) <= 8


async def test_a_takeover_that_the_broker_tells_is_told_and_waited_out(odd: StartOdd, read: Read) -> None:
    async def answer(kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == 1:
            writer.write(CONNACK_OK_5 + bytes([0xE0, 1, 0x8E]))

    delays: list[float] = []

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)
        await asyncio.Event().wait()

    broker = await odd(answer)
    async with connect_mqtt(options(broker.port, reconnect_max_s=60), sleep=sleep) as transport:
        reader = read(transport)
        await reader.until(lambda r: r.losses)
        assert reader.losses == [ConnectionLost("another client connected with the same client id", True)]
        await asyncio.sleep(0)
        assert delays == [15.0]


@pytest.mark.broker
async def test_a_process_that_is_killed_leaves_its_will(mosquitto: RunningMosquitto, read: Read) -> None:
    program = """
        import asyncio, sys
        from edgefed.transport.base import Will
        from edgefed.transport.mqtt import MqttOptions, connect_mqtt

        async def main():
            options = MqttOptions("127.0.0.1", int(sys.argv[1]), "doomed")
            async with connect_mqtt(options, Will("state", b"lost")) as transport:
                await transport.publish("state", b"here", retain=True)
                await asyncio.Event().wait()

        asyncio.run(main())
    """
    async with connect_mqtt(options(mosquitto.port, "watcher")) as watcher:
        reader = read(watcher)
        await watcher.subscribe("state")
        doomed = await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(program), str(mosquitto.port)
        )
        await reader.until(lambda r: r.payloads == [b"here"])
        doomed.kill()
        await doomed.wait()
        await reader.until(lambda r: r.payloads == [b"here", b"lost"])


@pytest.mark.broker
async def test_a_broker_that_goes_silent_is_noticed(mosquitto: RunningMosquitto, read: Read) -> None:
    async with connect_mqtt(options(mosquitto.port, keepalive_s=1, connect_timeout_s=1)) as transport:
        reader = read(transport)
        await reader.until(lambda r: r.connects)
        assert mosquitto.pid is not None
        os.kill(mosquitto.pid, signal.SIGSTOP)
        try:
            publishing = asyncio.create_task(transport.publish("x", b"patience"))
            await reader.until(lambda r: r.losses)
            assert reader.losses[0].reason == "nothing was heard of the broker for 2 s"
        finally:
            os.kill(mosquitto.pid, signal.SIGCONT)
        await asyncio.wait_for(publishing, 10)


@pytest.mark.broker
async def test_a_slow_link_under_load_is_not_taken_for_a_dead_one(mosquitto: RunningMosquitto, read: Read) -> None:
    bytes_per_s = 100_000

    over = asyncio.Event()

    async def carry(client: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        broker, broker_out = await asyncio.open_connection("127.0.0.1", mosquitto.port)
        back = asyncio.create_task(pump(broker, client_out))
        while data := await client.read(bytes_per_s // 50):
            broker_out.write(data)
            await asyncio.sleep(len(data) / bytes_per_s)
        broker_out.close()
        await back
        client_out.close()
        await asyncio.gather(broker_out.wait_closed(), client_out.wait_closed())
        over.set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            sink.write(data)

    link = await asyncio.start_server(carry, "127.0.0.1", 0, limit=1 << 12)
    port = link.sockets[0].getsockname()[1]
    async with connect_mqtt(options(port, keepalive_s=1)) as transport:
        reader = read(transport)
        # Eight at once take 2.6 s: a ping behind them is answered too late.
        await asyncio.gather(*(transport.publish("x", bytes(32 << 10)) for _ in range(10)))
        assert not reader.losses
    await asyncio.wait_for(over.wait(), 10)
    link.close()


@pytest.mark.broker
async def test_persistent_sessions_survive_a_restart_of_the_broker(tmp_path: Path, read: Read) -> None:
    with running_mosquitto(persistence_dir=tmp_path) as process:
        async with connect_mqtt(options(process.port)) as transport:
            reader = read(transport)
            await transport.subscribe("x")
            await transport.publish("kept", b"kept", retain=True)
            process.restart()
            await reader.until(lambda r: len(r.connects) == 2)
            assert reader.connects[1].session_resumed
            await transport.subscribe("kept")
            await reader.until(lambda r: r.messages)
            assert reader.messages == [Message("kept", b"kept", retained=True)]


@pytest.mark.broker
async def test_no_session_is_kept_where_none_is_wanted(mosquitto: RunningMosquitto, read: Read) -> None:
    for protocol in ("5", "3.1.1"):
        passing = options(mosquitto.port, "visitor", session_expiry_s=0, protocol=protocol)
        for _ in range(2):
            async with connect_mqtt(passing) as transport:
                await transport.subscribe("x")
                reader = read(transport)
                await reader.until(lambda r: r.connects)
                assert not reader.connects[0].session_resumed


# ---------------------------------------------------------------------- brokers that answer oddly

CONNACK_OK_5 = bytes([0x20, 3, 0, 0, 0])
CONNACK_OK_311 = bytes([0x20, 2, 0, 0])
Answer = Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]]


class OddBroker:
    """Answers every packet as a test says; knows just enough MQTT to cut the stream into packets."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.connects: list[int] = []
        self.port = 0
        self.serving: set[asyncio.Task[Any] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        try:
            while True:
                kind = (await reader.readexactly(1))[0]
                length, shift = 0, 0
                while True:
                    byte = (await reader.readexactly(1))[0]
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    if not byte & 0x80:
                        break
                body = await reader.readexactly(length)
                if kind >> 4 == 1:
                    self.connects.append(body[6])
                await self._answer(kind >> 4, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.fixture
async def odd() -> AsyncIterator[Callable[[Answer], Awaitable[OddBroker]]]:
    servers: list[asyncio.Server] = []
    brokers: list[OddBroker] = []

    async def start(answer: Answer) -> OddBroker:
        broker = OddBroker(answer)
        brokers.append(broker)
        servers.append(await asyncio.start_server(broker.serve, "127.0.0.1", 0))
        broker.port = servers[-1].sockets[0].getsockname()[1]
        return broker

    yield start
    for server in servers:
        server.close()
    for broker in brokers:
        await asyncio.gather(*(task for task in broker.serving if task is not None))


StartOdd = Callable[[Answer], Awaitable[OddBroker]]


@pytest.mark.parametrize("manner", ["refuses", "hangs up", "says nothing", "talks nonsense"])
async def test_a_broker_without_mqtt_5_is_asked_in_3_1_1(
    odd: StartOdd, manner: str, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgefed.transport.mqtt._SILENCE_S", 0.2)

    async def answer(kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == 1 and body[6] == 4:
            writer.write(CONNACK_OK_311)
        elif kind == 1 and manner == "refuses":
            writer.write(bytes([0x20, 2, 0, 1]))
        elif kind == 1 and manner == "hangs up":
            writer.close()
        elif kind == 1 and manner == "talks nonsense":
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        elif kind == 3:
            topic_bytes = int.from_bytes(body[:2], "big")
            writer.write(bytes([0x40, 2]) + body[2 + topic_bytes : 4 + topic_bytes])
            writer.close()  # after each message, so that the client connects again

    broker = await odd(answer)
    async with connect_mqtt(options(broker.port)) as transport:
        reader = read(transport)
        await transport.publish("x", b"")
        await reader.until(lambda r: r.losses)
        await transport.publish("x", b"")
        assert broker.connects[:3] == [5, 4, 4]  # the version that worked is remembered


async def test_a_broker_that_speaks_neither_version_is_refused_as_one(odd: StartOdd) -> None:
    async def answer(kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes([0x20, 2, 0, 1]) if body[6] == 4 else bytes([0x20, 3, 0, 0x84, 0]))

    broker = await odd(answer)
    for protocol, tried in (("auto", [5, 4]), ("5", [5]), ("3.1.1", [4])):
        broker.connects.clear()
        with pytest.raises((BrokerRefused, BrokerUnreachable)):
            async with connect_mqtt(options(broker.port, protocol=protocol)):
                pass
        assert broker.connects == tried


async def test_something_else_on_the_port_is_not_taken_for_a_broker(odd: StartOdd) -> None:
    async def answer(kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.close()

    broker = await odd(answer)
    with pytest.raises(BrokerUnreachable, match="closed"):
        async with connect_mqtt(options(broker.port)):
            pass


async def test_a_busy_broker_is_waited_for(odd: StartOdd) -> None:
    async def answer(kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == 1:
            busy = len(broker.connects) < 3
            writer.write(bytes([0x20, 3, 0, 0x89, 0]) if busy else CONNACK_OK_5)

    broker = await odd(answer)
    with pytest.raises(BrokerUnreachable, match="cannot serve now: Server busy"):
        async with connect_mqtt(options(broker.port)):
            pass
    async with connect_mqtt(options(broker.port), retry_first=True):
        assert len(broker.connects) == 3


async def test_a_refused_subscription_is_an_error_and_not_repeated(odd: StartOdd, read: Read) -> None:
    subscribed: list[bytes] = []

    async def answer(kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == 1:
            writer.write(CONNACK_OK_5)
        elif kind == 8:
            topic_filter = body[5:-1]
            subscribed.append(topic_filter)
            writer.write(bytes([0x90, 4]) + body[:2] + bytes([0, 0x87 if topic_filter == b"secret" else 1]))
            if len(subscribed) == 2:
                writer.close()

    broker = await odd(answer)
    async with connect_mqtt(options(broker.port)) as transport:
        reader = read(transport)
        with pytest.raises(BrokerRefused, match="refused the subscription to secret: Not authorized"):
            await transport.subscribe("secret")
        await transport.subscribe("public")
        await reader.until(lambda r: len(r.connects) == 2)
        assert subscribed == [b"secret", b"public", b"public"]


async def test_a_broker_with_a_small_receive_maximum_is_not_overrun(odd: StartOdd) -> None:
    under_way: list[bytes] = []
    most = 0

    async def answer(kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        if kind == 1:
            writer.write(bytes([0x20, 6, 0, 0, 3, 0x21, 0, 4]))  # receive maximum 4
        elif kind == 3:
            under_way.append(body[3:5])
            most = max(most, len(under_way))
            asyncio.get_running_loop().call_later(0.005, acknowledge, writer)

    def acknowledge(writer: asyncio.StreamWriter) -> None:
        writer.write(bytes([0x40, 2]) + under_way.pop(0))

    broker = await odd(answer)
    async with connect_mqtt(options(broker.port)) as transport:
        given_up = [asyncio.create_task(transport.publish("x", b"", timeout_s=0.001)) for _ in range(3)]
        await asyncio.gather(*(transport.publish("x", b"") for _ in range(40)), return_exceptions=True)
        await asyncio.gather(*given_up, return_exceptions=True)
        assert most == 4


async def test_messages_that_wait_are_bounded(
    odd: StartOdd, read: Read, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edgefed.transport.mqtt_inbox._MAX_WAITING_BYTES", 3_000)

    async def answer(kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == 1:
            writer.write(CONNACK_OK_311)
            for packet_id in range(1, 11):
                writer.write(bytes([0x32, 0xED, 0x07, 0, 1]) + b"x" + packet_id.to_bytes(2, "big") + bytes(1_000))

    broker = await odd(answer)
    async with connect_mqtt(options(broker.port, protocol="3.1.1", reconnect_max_s=60)) as transport:
        await asyncio.wait_for(asyncio.shield(transport._connection.ended), 10)
        reader = read(transport)
        await reader.until(lambda r: r.losses)
        assert [type(event) for event in reader.events] == [Connected, Message, Message, Message, ConnectionLost]
        assert "wait here to be handled" in reader.losses[0].reason


async def test_closing_does_not_wait_for_an_attempt_to_connect(odd: StartOdd, read: Read) -> None:
    silent = asyncio.Event()

    async def answer(kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == 1 and len(broker.connects) == 1:
            writer.write(CONNACK_OK_5)
            await asyncio.sleep(0.05)
            writer.close()
        elif kind == 1:
            silent.set()

    broker = await odd(answer)
    async with connect_mqtt(options(broker.port, connect_timeout_s=30)) as transport:
        assert isinstance(transport, MqttTransport)
        await asyncio.wait_for(silent.wait(), 10)
        await asyncio.wait_for(transport.close(), 2)


async def test_a_will_goes_out_with_the_connect(odd: StartOdd) -> None:
    seen: list[bytes] = []

    async def answer(kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == 1:
            seen.append(body)
            writer.write(CONNACK_OK_5)

    broker = await odd(answer)
    async with connect_mqtt(options(broker.port), Will("state", b"lost")):
        flags = seen[0][7]
        assert flags & 0x04
        assert (flags >> 3) & 0x03 == 1
        assert flags & 0x20
        assert not flags & 0x02  # the session is resumed
