"""The way to the broker, step by step: name, TCP, TLS, then what `conversation` finds. It ends where a step fails."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from edgefed.doctor.conversation import converse
from edgefed.doctor.findings import Board, Finding, Findings, note, ok, problem
from edgefed.errors import BrokerUnreachable, ConfigError
from edgefed.transport.mqtt_options import MqttOptions
from edgefed.transport.options import guarded_client_id
from edgefed.transport.tls_problems import explain_unreachable

__all__ = ["look_at_broker"]

_PATIENCE_S = 10.0


def look_at_broker(board: Board) -> Findings:
    """Yields how far the agent would come with the broker.

    It connects as the device, under a client id of its own and without a session, a will or a retained message: an
    agent that is running does not notice.
    """
    options = board.options
    assert options is not None
    try:
        name = guarded_client_id(f"{options.fleet}-{options.device}-doctor")
        mqtt = options.broker.mqtt(name, session_expiry_s=0)
    except ConfigError as error:
        yield problem(str(error), f"correct [broker] in {board.config}")
        return
    enrolled = not mqtt.tls_cert or Path(mqtt.tls_cert).exists()
    for step in (_resolve, _reach, _shake_hands) if enrolled else (_resolve, _reach):
        failed = False
        for finding in step(board, mqtt):
            yield finding
            failed = failed or finding.status == "problem"
        if failed:
            return
    if enrolled:
        yield from asyncio.run(converse(board, mqtt))
    else:
        yield note("not looked at further: the device has no certificate yet to show to the broker")


def _resolve(board: Board, mqtt: MqttOptions) -> Findings:
    try:
        found = socket.getaddrinfo(mqtt.host, mqtt.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        yield problem(
            f"the name {mqtt.host!r} cannot be resolved: {error}",
            f"is the network up (`ip addr`, `resolvectl`), and is broker.host right in {board.config}? An address "
            "works too, where the broker's certificate is for it",
        )
        return
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    if addresses != [mqtt.host]:
        yield ok(f"{mqtt.host} is {', '.join(addresses)}")


def _reach(_board: Board, mqtt: MqttOptions) -> Findings:
    try:
        socket.create_connection((mqtt.host, mqtt.port), timeout=_PATIENCE_S).close()
    except ConnectionRefusedError:
        yield problem(
            f"{mqtt.address} refuses the connection: nobody listens there",
            "start the broker; does it listen on this address and port, and not only on its own 127.0.0.1?",
        )
    except OSError as error:
        yield problem(
            f"{mqtt.address} cannot be reached: {error.strerror or error}",
            "is the board's network up, is the address the broker's, and does a firewall let the port through?",
        )
    else:
        yield ok(f"{mqtt.address} accepts connections")


def _shake_hands(board: Board, mqtt: MqttOptions) -> Findings:
    if not mqtt.uses_tls:
        return
    try:
        said = _handshake(mqtt)
    except ConfigError as error:
        yield problem(str(error), "see the check of the certificate")
    except ssl.SSLCertVerificationError as error:
        unreachable = BrokerUnreachable(str(error))
        unreachable.__cause__ = error
        yield problem(
            f"the broker's certificate is not accepted: {error.verify_message}",
            explain_unreachable(mqtt, unreachable, board.now()),
        )
    except OSError as error:
        yield _failed_handshake(mqtt, error)
    else:
        yield ok(f"the broker's certificate is of the authority in {mqtt.tls_ca}, and for {mqtt.host} ({said})")


def _handshake(mqtt: MqttOptions) -> str:
    with _encrypted(mqtt) as connection:
        return f"{connection.version()}, {(connection.cipher() or ['?'])[0]}"


@contextlib.contextmanager
def _encrypted(mqtt: MqttOptions) -> Iterator[ssl.SSLSocket]:
    context = mqtt.tls_context()
    with (
        socket.create_connection((mqtt.host, mqtt.port), timeout=_PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname=mqtt.host) as encrypted,
    ):
        yield encrypted


def _failed_handshake(mqtt: MqttOptions, error: OSError) -> Finding:
    if isinstance(error, ssl.SSLError) and "WRONG_VERSION" in (error.reason or ""):
        return problem(
            f"{mqtt.address} answers, and not in TLS",
            "broker.port is usually 8883 with TLS; else let the broker listen with TLS there",
        )
    return problem(
        f"{mqtt.address} accepts the connection and ends the TLS handshake: {error}",
        "is it the MQTT port with TLS (usually 8883)? A port without TLS may also just stay silent",
    )
