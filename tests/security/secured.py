"""A fleet with a Mosquitto of its own, configured by what `broker-config` writes; and ways to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from edgefed.security.broker_password import LOCAL_AGGREGATOR, broker_password
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.mosquitto_files import MosquittoOptions, write_mosquitto
from edgefed.transport.base import Message, Transport, Will
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from tools.mosquitto import RunningMosquitto, acl_plugin, configured_mosquitto, free_port, mosquitto_version

NAME = "test"
PATIENCE_S = 60


def now() -> datetime:
    return datetime.now(timezone.utc)


def device(name: str) -> Identity:
    return Identity("device", name)


def tls(place: Path) -> dict[str, str]:
    """Returns the options of a connection with the certificate in a directory."""
    files = {"tls_ca": "ca.pem", "tls_cert": "certificate.pem", "tls_key": "key.pem"}
    return {option: str(place / file) for option, file in files.items()}


def options_of_this_mosquitto(installed_at: Path, port: int, local_port: int | None = None) -> MosquittoOptions:
    """Returns the options for the version of Mosquitto that `tools.mosquitto` runs."""
    plugin = {"acl_plugin": path} if (path := acl_plugin()) else {}
    version = "2.1" if mosquitto_version() >= (2, 1) else "2.0"
    return MosquittoOptions(
        installed_at=installed_at, version=version, bind="127.0.0.1", port=port, local_port=local_port, **plugin
    )


class Secured:
    """The fleet, its broker, and connections to it.

    Attributes:
        fleet: the fleet's directory.
        port: where its broker listens.
        local_port: where it lets the aggregator in without TLS.
        broker: the broker's process.
    """

    def __init__(self, path: Path) -> None:
        self.fleet = FleetDirectory.create(path / "fleet", NAME, hosts=["127.0.0.1"], lifetimes=Lifetimes(), now=now())
        self.port, self.local_port = free_port(), free_port()
        self.files = path / "broker"
        self.broker: RunningMosquitto

    def enroll(self, identity: Identity) -> Path:
        return self.fleet.enroll(identity, days=30, now=now())

    def write(self) -> None:
        """Writes the broker's configuration as it is now."""
        write_mosquitto(
            self.fleet,
            self.files,
            options_of_this_mosquitto(self.files, self.port, self.local_port),
            now(),
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.write()
        with configured_mosquitto(self.files / "mosquitto.conf", self.port) as self.broker:
            yield

    def connect(
        self, who: Identity | Path, *, will: Will | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Transport]:
        """Connects as a member, or with the certificate in a directory."""
        place = who if isinstance(who, Path) else self.fleet.place(who)
        settings = {"client_id": secrets.token_hex(8), "session_expiry_s": 0, **tls(place), **options}
        return connect_mqtt(MqttOptions("127.0.0.1", self.port, **settings), will)

    def connect_locally(self, **options: Any) -> AbstractAsyncContextManager[Transport]:
        """Connects as the aggregator does beside the broker, or with other words."""
        settings = {
            "client_id": secrets.token_hex(8),
            "session_expiry_s": 0,
            "username": LOCAL_AGGREGATOR,
            "password": broker_password(self.fleet, now()),
            **options,
        }
        return connect_mqtt(MqttOptions("127.0.0.1", self.local_port, **settings))

    def raw(self, who: Identity) -> ssl.SSLSocket:
        """Returns a bare TLS connection as a member, for what no honest client would say."""
        place = self.fleet.place(who)
        context = ssl.create_default_context(cafile=place / "ca.pem")
        context.load_cert_chain(place / "certificate.pem", place / "key.pem")
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    @contextlib.asynccontextmanager
    async def spy(self) -> AsyncIterator[Ear]:
        """Hears all that the aggregator may hear."""
        async with self.connect(AGGREGATOR) as transport, listening(transport) as ear:
            for channel in ("state", "profile", "up"):
                await transport.subscribe(f"edgefed/v1/{NAME}/device/+/{channel}")
            await transport.subscribe(f"edgefed/v1/{NAME}/aggregator/state")
            yield ear


class Ear:
    """What came in over a connection."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.heard: list[Message] = []

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.heard]


@contextlib.asynccontextmanager
async def listening(transport: Transport) -> AsyncIterator[Ear]:
    """Collects what comes in over a connection during the block."""
    ear = Ear(transport)

    async def collect() -> None:
        async for event in transport.events():
            if isinstance(event, Message):
                ear.heard.append(event)

    task = asyncio.create_task(collect())
    try:
        yield ear
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object]) -> None:
    """Waits for something to hold, and fails where it does not come."""
    for _ in range(PATIENCE_S * 50):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"still waiting after {PATIENCE_S} s")


def connect_packet(client_id: str) -> bytes:
    """Returns an MQTT 3.1.1 CONNECT."""
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(name).to_bytes(2, "big") + name
    return b"\x10" + bytes([len(body)]) + body


def publish_packet(topic: str, size_bytes: int) -> bytes:
    """Returns an MQTT 3.1.1 PUBLISH of QoS 0 with a payload of zeros."""
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name + bytes(size_bytes)
    length, digits = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        digits.append(digit | (128 if length else 0))
        if not length:
            return b"\x30" + bytes(digits) + body
