"""A message broker inside one process, for tests and for simulated fleets: the same promises, trouble on request.

Trouble is deterministic: the same seed and the same order of calls lose, repeat, delay and reorder the same
messages.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from edgefed.errors import Disconnected, PayloadTooLarge
from edgefed.protocol.chunks import is_chunk
from edgefed.transport.base import (
    DEFAULT_MAX_PAYLOAD_BYTES,
    Connected,
    ConnectionLost,
    Event,
    Message,
    Will,
)
from edgefed.transport.topic_filter import topic_matches
from edgefed.waiting import wait_at_most

__all__ = ["InMemoryBroker", "InMemoryTransport"]


def _carries_chunk(message: Message) -> bool:
    return is_chunk(message.payload)


class InMemoryBroker:
    """A broker whose clients are ``connect``-ed transports of the same process.

    Args:
        seed: Of every random draw.
        loss: Chance that an unreliable message does not reach one subscriber. A real broker loses at QoS 1 only
            by overflow of a subscriber's queue, which is why retained and control messages are spared by
            default.
        duplication: Chance that a message arrives twice at one subscriber; any message, as QoS 1 allows.
        reorder: Chance that an unreliable message overtakes some that still wait for the same subscriber.
        delay_s: Shortest and longest time from publish to delivery, drawn per message and subscriber; order is
            kept.
        queue_limit: Messages that may wait for one subscriber; more are dropped and counted, as Mosquitto does.
        max_payload_bytes: Larger payloads raise ``PayloadTooLarge``.
        unreliable: Which messages may be lost or reordered; retained ones never are. By default those that
            carry a chunk of a blob.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        loss: float = 0.0,
        duplication: float = 0.0,
        reorder: float = 0.0,
        delay_s: tuple[float, float] = (0.0, 0.0),
        queue_limit: int = 1000,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
        unreliable: Callable[[Message], bool] = _carries_chunk,
    ) -> None:
        self.max_payload_bytes = max_payload_bytes
        self.dropped = 0
        self._draw = random.Random(seed)
        self._loss = loss
        self._duplication = duplication
        self._reorder = reorder
        self._delay_s = delay_s
        self._queue_limit = queue_limit
        self._unreliable = unreliable
        self._retained: dict[str, Message] = {}
        self._sessions: dict[str, _Session] = {}

    def connect(self, client_id: str, will: Will | None = None) -> InMemoryTransport:
        """Return a connected client; one that holds the same id is thrown out, as MQTT does, and stays out.

        A client id that was connected before resumes its session: its subscriptions, what arrived meanwhile,
        and what the previous transport had not finished handling.
        """
        resumed = client_id in self._sessions
        session = self._sessions.setdefault(client_id, _Session())
        previous = session.transport
        if previous is not None:
            self._cut(session, ConnectionLost("another client connected with the same client id", True))
            session.backlog.extendleft(reversed(previous._unacknowledged()))
        session.transport = InMemoryTransport(self, client_id, will, session)
        self._bring_up(session, resumed)
        return session.transport

    def drop(self, client_id: str) -> None:
        """Cut a client's connection as a crash or a dead link would: its will is published, its session kept.

        The transport stays without a connection until ``restore``.
        """
        self._cut(self._sessions[client_id], ConnectionLost("the connection was cut"))

    def restore(self, client_id: str) -> None:
        """Give a dropped client its connection back; what came meanwhile is delivered."""
        session = self._sessions[client_id]
        if session.transport is not None and not session.transport.is_connected and not session.transport.is_closed:
            self._bring_up(session, resumed=True)

    def _cut(self, session: _Session, lost: ConnectionLost) -> None:
        transport = session.transport
        if transport is None or not transport.is_connected:
            return
        transport._went_down(lost)
        if transport.will is not None:
            self._accept(Message(transport.will.topic, transport.will.payload, retained=True))

    def _bring_up(self, session: _Session, resumed: bool) -> None:
        transport = session.transport
        assert transport is not None
        transport._came_up(Connected(resumed, self.max_payload_bytes))
        while session.backlog:
            transport._put(session.backlog.popleft())
        for topic_filter in session.subscriptions:
            self._send_retained(session, topic_filter)

    # ------------------------------------------------------------------ called by transports

    def _accept(self, message: Message) -> None:
        if message.retained and message.payload:
            self._retained[message.topic] = message
        elif message.retained:
            self._retained.pop(message.topic, None)
        news = Message(message.topic, message.payload)
        for session in self._sessions.values():
            if any(topic_matches(wanted, message.topic) for wanted in session.subscriptions):
                self._route(session, news, spared=message.retained)

    def _route(self, session: _Session, message: Message, *, spared: bool) -> None:
        unreliable = not spared and self._unreliable(message)
        if unreliable and self._draw.random() < self._loss:
            self.dropped += 1
            return
        copies = 2 if self._draw.random() < self._duplication else 1
        for _ in range(copies):
            overtakes = unreliable and self._draw.random() < self._reorder
            self._enqueue(session, message, overtaken=self._draw.randint(1, 8) if overtakes else 0)

    def _send_retained(self, session: _Session, topic_filter: str) -> None:
        for topic, message in self._retained.items():
            if topic_matches(topic_filter, topic):
                self._enqueue(session, message)

    def _enqueue(self, session: _Session, message: Message, overtaken: int = 0) -> None:
        if session.waiting >= self._queue_limit:
            self.dropped += 1
            return
        delay_s = self._draw.uniform(*self._delay_s)
        due_s = asyncio.get_running_loop().time() + delay_s if delay_s else 0.0
        session.put(_Waiting(message, due_s), overtaken)


@dataclass(frozen=True, slots=True)
class _Waiting:
    event: Event
    due_s: float = 0.0


class _Session:
    """What the broker keeps for a client id across connections."""

    def __init__(self) -> None:
        self.subscriptions: dict[str, None] = {}
        self.backlog: deque[_Waiting] = deque()
        self.transport: InMemoryTransport | None = None

    @property
    def waiting(self) -> int:
        return len(self.backlog) + (len(self.transport._inbox) if self.transport is not None else 0)

    def put(self, waiting: _Waiting, overtaken: int) -> None:
        if self.transport is not None and self.transport.is_connected:
            self.transport._put(waiting, overtaken)
        else:
            self.backlog.append(waiting)


class InMemoryTransport:
    """A ``Transport``; made by ``InMemoryBroker.connect``. ``async with`` closes it."""

    def __init__(self, broker: InMemoryBroker, client_id: str, will: Will | None, session: _Session) -> None:
        self.client_id = client_id
        self.will = will
        self._broker = broker
        self._session = session
        self._inbox: deque[_Waiting] = deque()
        self._handled: _Waiting | None = None
        self._news = asyncio.Event()
        self._changed = asyncio.Event()  # set while connected, and for good once closed
        self._connected = False
        self._closed = False

    @property
    def is_connected(self) -> bool:
        """Whether this client has its connection now."""
        return self._connected

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    @property
    def max_payload_bytes(self) -> int:
        """Largest payload that ``publish`` takes."""
        return self._broker.max_payload_bytes

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float | None = None
    ) -> None:
        """See ``Transport.publish``."""
        if len(payload) > self.max_payload_bytes:
            raise PayloadTooLarge(len(payload), self.max_payload_bytes)
        try:
            await wait_at_most(self._ready(), timeout_s)
        except asyncio.TimeoutError:
            raise Disconnected(f"no connection for a message to {topic} within {timeout_s:g} s") from None
        self._broker._accept(Message(topic, bytes(payload), retain))
        await asyncio.sleep(0)  # as over a network, others get a turn before the acknowledgement is seen

    async def subscribe(self, topic_filter: str) -> None:
        """See ``Transport.subscribe``."""
        await self._ready()
        self._session.subscriptions[topic_filter] = None
        self._broker._send_retained(self._session, topic_filter)

    async def unsubscribe(self, topic_filter: str) -> None:
        """See ``Transport.unsubscribe``."""
        if self._closed:
            await self._ready()
        self._session.subscriptions.pop(topic_filter, None)

    async def events(self) -> AsyncIterator[Event]:
        """See ``Transport.events``."""
        loop = asyncio.get_running_loop()
        while True:
            self._handled = None  # the consumer is back: it has dealt with the last one
            while not self._inbox and not self._closed:
                self._news.clear()
                await self._news.wait()
            if self._closed:
                return
            delay_s = self._inbox[0].due_s - loop.time()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
                continue  # meanwhile something may have overtaken it, or the transport may be closed
            self._handled = self._inbox.popleft()
            yield self._handled.event

    async def close(self, final: Message | None = None) -> None:
        """See ``Transport.close``."""
        if self._closed:
            return
        if final is not None and self._connected:
            await self.publish(final.topic, final.payload, retain=final.retained)
        self._closed, self._connected = True, False
        self._changed.set()
        self._news.set()

    async def __aenter__(self) -> InMemoryTransport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ------------------------------------------------------------------ called by the broker

    def _came_up(self, event: Connected) -> None:
        self._connected = True
        self._changed.set()
        self._put(_Waiting(event))

    def _went_down(self, event: ConnectionLost) -> None:
        self._connected = False
        self._changed.clear()
        self._put(_Waiting(event))

    def _put(self, waiting: _Waiting, overtaken: int = 0) -> None:
        place = len(self._inbox)
        while overtaken > 0 and place > 0 and isinstance(self._inbox[place - 1].event, Message):
            place, overtaken = place - 1, overtaken - 1
        self._inbox.insert(place, waiting)
        self._news.set()

    def _unacknowledged(self) -> list[_Waiting]:
        handled = [self._handled] if self._handled is not None else []
        return [waiting for waiting in (*handled, *self._inbox) if isinstance(waiting.event, Message)]

    async def _ready(self) -> None:
        await self._changed.wait()
        if self._closed:
            raise Disconnected(f"the connection of {self.client_id} was closed")
