"""What came over a connection and waits for the consumer; each message is acknowledged once it was handled."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from edgefed.transport.base import Connected, ConnectionLost, Event, Message
from edgefed.transport.mqtt_connection import MqttConnection

__all__ = ["MqttInbox"]

_MAX_WAITING_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An event that waits for the consumer, and what to acknowledge once it was handled."""

    event: Event
    connection: MqttConnection | None = None
    packet_id: int | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.event.payload) if isinstance(self.event, Message) else 0

    def acknowledge(self) -> None:
        # Only to the connection that it came over: another one uses the same packet ids for other messages.
        if self.connection is not None and self.packet_id is not None:
            self.connection.acknowledge(self.packet_id)


class MqttInbox:
    """Events in order, over all connections of a transport.

    A message is acknowledged only when the consumer comes back for the next event, and the broker stops sending at
    ``RECEIVE_MAXIMUM`` unacknowledged ones. A 3.1.1 broker has its own such limit (Mosquitto: 20). Should one have
    none, the connection is dropped when ``_MAX_WAITING_BYTES`` wait; the broker delivers again what was not
    acknowledged.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._adopted: MqttConnection | None = None
        self._early: list[_Waiting] = []  # came over a connection whose Connected event is yet to come
        self._handled: _Waiting | None = None
        self._news = asyncio.Event()
        self._closed = False

    def deliver(self, connection: MqttConnection, message: Message, packet_id: int | None) -> None:
        """Take a message. Over a connection that is not adopted yet, it waits behind that."""
        if self._waiting_bytes + len(message.payload) > _MAX_WAITING_BYTES:
            connection.abort(
                f"more than {_MAX_WAITING_BYTES >> 20} MiB wait here to be handled, and the broker sends on; "
                "it delivers the rest again after a reconnect"
            )
            return
        self._waiting_bytes += len(message.payload)
        waiting = _Waiting(message, connection, packet_id)
        if connection is self._adopted:
            self._put(waiting)
        else:
            self._early.append(waiting)

    def adopt(self, connection: MqttConnection, connected: Connected) -> None:
        """Put ``connected``, and then what came over the connection before."""
        self._adopted = connection
        self._put(_Waiting(connected))
        for waiting in self._early:
            self._put(waiting)
        self._early.clear()

    def lose(self, lost: ConnectionLost) -> None:
        """Put the end of the adopted connection."""
        self._adopted = None
        self._put(_Waiting(lost))

    def forget_early(self) -> None:
        """Drop what an attempt to connect brought that failed: it was not acknowledged, so it comes again."""
        self._waiting_bytes -= sum(waiting.size_bytes for waiting in self._early)
        self._early.clear()

    async def next(self) -> Event | None:
        """Return the next event, having acknowledged the one before; None once closed."""
        if self._handled is not None:  # the consumer is back: it has dealt with the last one
            self._handled.acknowledge()
            self._handled = None
        while not self._waiting and not self._closed:
            self._news.clear()
            await self._news.wait()
        if self._closed:
            return None  # what still waits was not acknowledged: the next session gets it
        self._handled = self._waiting.popleft()
        self._waiting_bytes -= self._handled.size_bytes
        return self._handled.event

    def close(self) -> None:
        """Give nothing more out."""
        self._closed = True
        self._news.set()

    def _put(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self._news.set()
