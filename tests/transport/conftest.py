"""Brokers of every kind behind one interface, so that one suite can ask the same of all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Literal, Protocol

import pytest

from edgefed.transport.base import Connected, ConnectionLost, Event, Message, Transport, Will
from edgefed.transport.embedded_broker import embedded_broker
from edgefed.transport.in_memory import InMemoryBroker, InMemoryTransport
from edgefed.transport.mqtt import MqttOptions, MqttTransport, connect_mqtt
from tools.mosquitto import RunningMosquitto, free_port, running_mosquitto

PATIENCE_S = 15.0


class Broker(Protocol):
    """A broker as the suite sees it."""

    def connect(
        self, client_id: str, will: Will | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Transport]: ...

    async def cut(self, transport: Transport) -> None:
        """Break a client's connection without a word; the client comes back by itself."""

    async def go_away(self) -> None: ...

    async def come_back(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.broker = InMemoryBroker()
        self.client_ids: list[str] = []

    def connect(self, client_id: str, will: Will | None = None) -> InMemoryTransport:
        self.client_ids.append(client_id)
        return self.broker.connect(client_id, will)

    async def cut(self, transport: Transport) -> None:
        assert isinstance(transport, InMemoryTransport)
        self.broker.drop(transport.client_id)
        asyncio.get_running_loop().call_later(0.05, self.broker.restore, transport.client_id)

    async def go_away(self) -> None:
        for client_id in self.client_ids:
            self.broker.drop(client_id)

    async def come_back(self) -> None:
        for client_id in self.client_ids:
            self.broker.restore(client_id)


class OverMqtt:
    def __init__(self, port: int, protocol: Literal["auto", "5", "3.1.1"] = "auto") -> None:
        self.port = port
        self.protocol = protocol

    def connect(
        self, client_id: str, will: Will | None = None, **options: Any
    ) -> AbstractAsyncContextManager[MqttTransport]:
        options = {"protocol": self.protocol, "reconnect_max_s": 0.2, **options}
        return connect_mqtt(MqttOptions("127.0.0.1", self.port, client_id, **options), will)

    async def cut(self, transport: Transport) -> None:
        assert isinstance(transport, MqttTransport)
        assert transport._connection is not None
        transport._connection.abort("cut by the test")


class Mosquitto(OverMqtt):
    def __init__(self, process: RunningMosquitto, protocol: Literal["auto", "5", "3.1.1"]) -> None:
        super().__init__(process.port, protocol)
        self.process = process

    async def go_away(self) -> None:
        self.process.kill()

    async def come_back(self) -> None:
        self.process.restart()


class Embedded(OverMqtt):
    def __init__(self) -> None:
        super().__init__(free_port())
        self._running = AsyncExitStack()

    async def go_away(self) -> None:
        await self._running.aclose()

    async def come_back(self) -> None:
        await self._running.enter_async_context(embedded_broker("127.0.0.1", self.port))


@pytest.fixture(
    params=[
        "in memory",
        "embedded",
        pytest.param("mosquitto", marks=pytest.mark.broker),
        pytest.param("mosquitto 3.1.1", marks=pytest.mark.broker),
    ]
)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    """One broker of each kind."""
    if request.param == "in memory":
        yield InMemory()
    elif request.param == "embedded":
        embedded = Embedded()
        await embedded.come_back()
        yield embedded
        await embedded.go_away()
    else:
        with running_mosquitto() as process:
            yield Mosquitto(process, "3.1.1" if "3.1.1" in request.param else "auto")


class Reader:
    """Reads a transport's events in the background and remembers them."""

    def __init__(self, transport: Transport) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._read(transport))

    async def _read(self, transport: Transport) -> None:
        async for event in transport.events():
            self.events.append(event)
            self._news.set()

    @property
    def messages(self) -> list[Message]:
        return [event for event in self.events if isinstance(event, Message)]

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]

    @property
    def connects(self) -> list[Connected]:
        return [event for event in self.events if isinstance(event, Connected)]

    @property
    def losses(self) -> list[ConnectionLost]:
        return [event for event in self.events if isinstance(event, ConnectionLost)]

    async def until(self, condition: Callable[[Reader], Any]) -> None:
        """Wait until something holds, and fail with what was read if it does not come true."""
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while not condition(self):
            self._news.clear()
            left_s = deadline_s - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._news.wait(), left_s)
            except asyncio.TimeoutError:
                pytest.fail(f"still waiting after {PATIENCE_S} s; read so far: {str(self.events)[:2000]}")

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def read() -> AsyncIterator[Callable[[Transport], Reader]]:
    """Start readers that end with the test."""
    readers: list[Reader] = []

    def start(transport: Transport) -> Reader:
        readers.append(Reader(transport))
        return readers[-1]

    yield start
    for reader in readers:
        await reader.stop()
