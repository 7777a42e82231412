"""amqtt's broker with the repairs that ``transport.base`` needs; only ``embedded_broker`` imports it.

amqtt 0.12 brings the packets, sessions, retained messages and wills. What it gets wrong, and is put right here:

* An MQTT 5 CONNECT is parsed as 3.1.1 and makes it wait for bytes that never come; it is refused at once instead.
* A second client with the same id marks the shared session as disconnected, and gets no messages; the first
  connection is ended completely before the second one begins.
* A message is forgotten when its PUBACK takes 5 s or the connection ends first; it is kept and sent again.
* Anonymous clients have no session; messages that waited for a client arrive marked as retained.
* Messages to one client are sent without a limit; now at most ``_WINDOW`` wait for PUBACK and ``_QUEUE_LIMIT``
  behind them.
* A client that resumes its session gets retained messages of topics it never subscribed to.
* Retained messages block a client's other traffic until each is acknowledged.
* A connection that was reset is never closed on this side.
* A client that goes silent stays connected for ever, and its will unpublished.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from dataclasses import dataclass
from typing import Any

from amqtt.adapters import ReaderAdapter, WriterAdapter
from amqtt.broker import Broker, RetainedApplicationMessage
from amqtt.mqtt.constants import QOS_0
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.session import OUTGOING, Session

from edgefed.waiting import wait_at_most

__all__ = ["AdmitEverybody", "RepairedBroker", "broker_config"]

_log = logging.getLogger(__name__)

_WINDOW = 20
_QUEUE_LIMIT = 1000
_CONNECT_TIMEOUT_S = 10.0
_TAKE_OVER_TIMEOUT_S = 5.0
_MAX_CONNECT_BYTES = 1 << 18
_LONGEST_HEAD_BYTES = 5  # packet type and remaining length [MQTT-2.2.3]
_PROTOCOL_LEVEL = 4  # MQTT 3.1.1
_CONNACK_WRONG_VERSION = bytes([0x20, 2, 0, 1])


def broker_config(host: str, port: int) -> dict[str, Any]:
    """Return the configuration of a broker that lets everybody in."""
    return {
        "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
        "plugins": {f"{__name__}.{AdmitEverybody.__name__}": {}},
        "session_expiry_interval": 3600,
    }


class AdmitEverybody(BaseAuthPlugin):  # type: ignore[misc]
    """Lets everybody in as a known client; amqtt's own anonymous access gives no session."""

    async def authenticate(self, *, session: Session) -> bool:
        """Return that the client may connect."""
        return session is not None


class RepairedBroker(Broker):  # type: ignore[misc]
    """See the module's docstring."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._deliveries: set[asyncio.Task[Any]] = set()

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        return int(self._servers["default"].instance.sockets[0].getsockname()[1])

    async def shutdown(self) -> None:
        """Stop, and drop what waits for clients."""
        for task in self._deliveries:
            task.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        await super().shutdown()

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serve one client's connection to its end."""
        try:
            await super().stream_connected(reader, writer, listener_name)
        finally:
            writer.close()

    async def _client_connected(self, listener_name: str, reader: ReaderAdapter, writer: WriterAdapter) -> None:
        try:
            connect = await wait_at_most(_Connect.read(reader), _CONNECT_TIMEOUT_S)
        except (ValueError, struct.error, asyncio.TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            _log.info("not an MQTT client: %r", error)
            await _close(writer)
            return
        if connect.protocol_level != _PROTOCOL_LEVEL:
            writer.write(_CONNACK_WRONG_VERSION)
            await _close(writer)
            return
        await self._end_previous_connection(connect.client_id)
        await super()._client_connected(listener_name, _Replay(connect.packet, reader), writer)

    async def _end_previous_connection(self, client_id: str) -> None:
        session, handler = self._sessions.get(client_id, (None, None))
        if session is None or not session.transitions.is_connected():
            return
        _log.info("client %s connected again: its previous connection is ended", client_id)
        await handler.handle_connection_closed()
        with contextlib.suppress(asyncio.TimeoutError):
            await wait_at_most(handler.gone.wait(), _TAKE_OVER_TIMEOUT_S)

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        _, session = await super()._initialize_client_session(reader, writer, remote_address, remote_port)
        session.keep_alive += session.keep_alive // 2  # [MQTT-3.1.2-24]
        return _Handler(self.plugins_manager), session

    async def _handle_disconnect(self, session: Session, handler: _Handler, waiter: Any) -> None:
        try:
            await super()._handle_disconnect(session, handler, waiter)
        finally:
            handler.gone.set()

    async def _run_broadcast(self, _running_tasks: Any) -> None:
        broadcast = await self._broadcast_queue.get()
        for topic_filter, subscriptions in self._subscriptions.items():
            if self._matches(broadcast["topic"], topic_filter):
                for session, subscribed_qos in subscriptions:
                    qos = broadcast.get("qos", subscribed_qos)
                    message = RetainedApplicationMessage(None, broadcast["topic"], broadcast["data"], qos)
                    if session.transitions.is_connected():
                        self._deliver(session, message, retain=False)
                    else:
                        _keep(session, message)

    async def _publish_session_retained_messages(self, session: Session) -> None:
        while not session.retained_messages.empty():
            self._deliver(session, session.retained_messages.get_nowait(), retain=False)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        topic_filter, _ = subscription
        for subscriber, qos in self._subscriptions.get(topic_filter, []):
            if subscriber is session:
                for topic, message in self._retained_messages.items():
                    if self._matches(topic, topic_filter):
                        kept = RetainedApplicationMessage(None, topic, message.data, qos)
                        self._deliver(session, kept, retain=True)

    def _deliver(self, session: Session, message: RetainedApplicationMessage, *, retain: bool) -> None:
        handler = self._get_handler(session)
        if not isinstance(handler, _Handler):
            _keep(session, message)
            return
        if handler.queued >= _QUEUE_LIMIT:
            _log.warning("%d messages wait for client %s: one is dropped", handler.queued, session.client_id)
            return
        task = asyncio.create_task(handler.deliver(session, message, retain))
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)


class _Handler(BrokerProtocolHandler):  # type: ignore[misc]
    """One client's connection."""

    def __init__(self, plugins_manager: Any) -> None:
        super().__init__(plugins_manager)
        self.queued = 0
        self.gone = asyncio.Event()  # the broker is through with this connection: will published, session free
        self._window = asyncio.Semaphore(_WINDOW)

    async def deliver(self, session: Session, message: RetainedApplicationMessage, retain: bool) -> None:
        """Send a message when its turn comes; keep it for the next connection if this one ends first."""
        self.queued += 1
        try:
            async with self._window:
                await self.mqtt_publish(message.topic, message.data, message.qos, retain)
        except (asyncio.CancelledError, Exception):  # noqa: BLE001 - amqtt raises many kinds when a connection ends
            _keep(session, message)
        finally:
            self.queued -= 1

    async def _handle_qos1_message_flow(self, app_message: Any) -> None:
        if app_message.direction != OUTGOING:
            await super()._handle_qos1_message_flow(app_message)
            return
        acknowledged = self._puback_waiters[app_message.packet_id] = self._loop.create_future()
        self.session.inflight_out[app_message.packet_id] = app_message  # reserves the packet id
        session = self.session
        try:
            await self._send_packet(app_message.build_publish_packet())
            await acknowledged  # cancelled when the connection ends
        finally:
            self._puback_waiters.pop(app_message.packet_id, None)
            session.inflight_out.pop(app_message.packet_id, None)

    def handle_read_timeout(self) -> None:
        """End a connection on which nothing came for one and a half times the keep-alive."""
        if self._disconnect_waiter is not None and not self._disconnect_waiter.done():
            self._disconnect_waiter.set_result(None)


def _keep(session: Session, message: RetainedApplicationMessage) -> None:
    """Keep a message for a client that is away, if it has a session to keep it in."""
    if session.clean_session or message.qos == QOS_0:
        return
    if session.retained_messages.qsize() >= _QUEUE_LIMIT:
        _log.warning("%d messages wait for client %s: one is dropped", _QUEUE_LIMIT, session.client_id)
        return
    session.retained_messages.put_nowait(message)


@dataclass(frozen=True, slots=True)
class _Connect:
    """What has to be known of a CONNECT packet before amqtt sees it."""

    packet: bytes
    protocol_level: int
    client_id: str

    @classmethod
    async def read(cls, reader: ReaderAdapter) -> _Connect:
        head = await reader.read(2)
        if head[0] != 0x10:
            raise ValueError(f"the first packet is not CONNECT but starts with {head[0]:#x}")
        length, shift = head[1] & 0x7F, 7
        while head[-1] & 0x80:
            if len(head) == _LONGEST_HEAD_BYTES:
                raise ValueError("a remaining length of more than four bytes")
            head += await reader.read(1)
            length |= (head[-1] & 0x7F) << shift
            shift += 7
        if length > _MAX_CONNECT_BYTES:
            raise ValueError(f"a CONNECT of {length} bytes")
        body = await reader.read(length)
        (name_bytes,) = struct.unpack_from("!H", body)
        (protocol_level,) = struct.unpack_from("!B", body, 2 + name_bytes)
        if protocol_level != _PROTOCOL_LEVEL:
            return cls(head + body, protocol_level, "")
        id_at = 2 + name_bytes + 4  # behind level, flags and keep-alive
        (id_bytes,) = struct.unpack_from("!H", body, id_at)
        return cls(head + body, protocol_level, body[id_at + 2 : id_at + 2 + id_bytes].decode(errors="replace"))


class _Replay(ReaderAdapter):  # type: ignore[misc]
    """A reader that gives back what was read ahead, then goes on."""

    def __init__(self, ahead: bytes, reader: ReaderAdapter) -> None:
        self._ahead = ahead
        self._reader = reader

    async def read(self, n: int = -1) -> bytes:
        if not self._ahead:
            return bytes(await self._reader.read(n))
        data, self._ahead = self._ahead[:n], self._ahead[n:]
        return data

    def feed_eof(self) -> None:
        self._reader.feed_eof()


async def _close(writer: WriterAdapter) -> None:
    with contextlib.suppress(OSError):
        await writer.close()
