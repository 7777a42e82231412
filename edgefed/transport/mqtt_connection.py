"""One MQTT connection on asyncio, from CONNECT to its end. ``transport.mqtt`` makes the next one.

This drives paho-mqtt's network loop from asyncio through paho's public callbacks. aiomqtt does the same, but
keeps to itself what the promises in ``transport.base`` need: the CONNACK's properties (packet limit, receive
maximum), whether a session was resumed, the reason code of a PUBACK, and the moment at which a received message
is acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgefed.errors import BrokerRefused, BrokerUnreachable
from edgefed.transport.base import ConnectionLost, Message, Will
from edgefed.transport.mqtt_options import MqttOptions

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

__all__ = ["RECEIVE_MAXIMUM", "ConnectionEnded", "MqttConnection", "NoAnswer", "VersionRefused"]

_log = logging.getLogger(__name__)

RECEIVE_MAXIMUM = 32
"""Messages the broker may have sent us without our acknowledgement: bounds our memory, and is plenty to fill a
link."""

_SEND_MAXIMUM = 64
"""Publishes that we have under way at most; fewer where the broker's own receive maximum is smaller."""

_LARGEST_INCOMING_BYTES = 1 << 20
"""A broker that knows MQTT 5 discards larger packets instead of sending them to us."""

# CONNACK reasons that time may cure; the others need an operator.
_TRANSIENT = {0x88, 0x89, 0x97, 0x9F}  # server unavailable, server busy, quota exceeded, connection rate exceeded
_UNSUPPORTED_VERSION = 0x84
_TAKEN_OVER = 0x8E

Deliver: TypeAlias = Callable[["MqttConnection", Message, "int | None"], None]


class NoAnswer(BrokerUnreachable):
    """Somebody accepted the connection and did not answer CONNECT; maybe it answers an older version of MQTT."""


class VersionRefused(BrokerRefused):
    """The broker answered that it does not speak this version of MQTT."""


class ConnectionEnded(Exception):
    """The connection ended while something waited on it."""


@dataclass(frozen=True, slots=True)
class _Connack:
    session_present: bool
    reason: ReasonCode
    properties: Properties | None


class MqttConnection:
    """An established connection.

    Attributes:
        session_resumed: The broker had kept our session.
        max_packet_bytes: The broker's limit, where it told one.
        ended: Done when the connection is over, with the reason. Never an exception.
    """

    def __init__(self, options: MqttOptions, version: MQTTProtocolVersion, will: Will | None, deliver: Deliver) -> None:
        """Prepare a connection; ``open`` makes it."""
        self._loop = asyncio.get_running_loop()
        self._options = options
        self._version = version
        self._deliver = deliver
        self._connack: asyncio.Future[_Connack] = self._loop.create_future()
        self.ended: asyncio.Future[ConnectionLost] = self._loop.create_future()
        self.session_resumed = False
        self.max_packet_bytes: int | None = None
        self._acks: dict[int, asyncio.Future[Any]] = {}  # by packet id: what waits for PUBACK, SUBACK, UNSUBACK
        self._free_slots = _SEND_MAXIMUM
        self._slot_queue: deque[asyncio.Future[None]] = deque()
        self._misc_timer: asyncio.TimerHandle | None = None
        self._client = self._make_client(will)

    # ------------------------------------------------------------------ opening and closing

    async def open(self, timeout_s: float) -> None:
        """Connect and wait for the broker's word.

        Raises:
            BrokerUnreachable: Nobody there, TLS failed, no answer in time, or the broker is not available now.
            BrokerRefused: The broker said no, and will say so again.
            NoAnswer: It let us connect and then did not answer CONNECT.
            VersionRefused: It does not speak this version of MQTT.
        """
        started = self._loop.time()
        try:
            await asyncio.wait_for(self._open_socket(), timeout_s)
            left_s = max(0.1, timeout_s - (self._loop.time() - started))
            connack = await asyncio.wait_for(asyncio.shield(self._connack), left_s)
        except asyncio.TimeoutError:
            error_type = BrokerUnreachable if self._client.socket() is None else NoAnswer
            self.abort("no answer")
            raise error_type(f"no answer within {timeout_s:g} s") from None
        except OSError as error:
            self.abort(str(error))
            raise BrokerUnreachable(str(error) or type(error).__name__) from error
        except BaseException:
            self.abort("given up")
            raise
        self._accept(connack)

    async def _open_socket(self) -> None:
        # paho resolves, connects and shakes hands blocking. A daemon thread of its own, because one of the loop's
        # executor would hold up the end of the process until the connect timeout.
        opened: asyncio.Future[None] = self._loop.create_future()

        def settle(error: Exception | None) -> None:
            if opened.done():  # we were given up on meanwhile
                self.abort("given up")
            elif error is None:
                opened.set_result(None)
            else:
                opened.set_exception(error)

        def connect() -> None:
            error: Exception | None = None
            try:
                self._connect_blocking()
            except Exception as raised:  # noqa: BLE001 - handed to the loop, raised there
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is gone: so is everybody who cares
                self._loop.call_soon_threadsafe(settle, error)

        threading.Thread(target=connect, name="mqtt-connect", daemon=True).start()
        await opened

    def _connect_blocking(self) -> None:
        options = self._options
        if options.uses_tls:
            self._client.tls_set_context(options.tls_context())
        if self._version == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = options.session_expiry_s
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = max(_LARGEST_INCOMING_BYTES, 2 * options.max_payload_bytes)
            self._client.connect(
                options.host,
                options.port,
                options.keepalive_s,
                clean_start=options.session_expiry_s == 0,
                properties=properties,
            )
        else:
            self._client.connect(options.host, options.port, options.keepalive_s)

    def _accept(self, connack: _Connack) -> None:
        code = connack.reason.value
        if code != 0:
            self.abort("refused")
            said = str(connack.reason)
            if code == _UNSUPPORTED_VERSION:
                raise VersionRefused(said)
            if code in _TRANSIENT:
                raise BrokerUnreachable(f"the broker answers that it cannot serve now: {said}")
            raise BrokerRefused(said)
        self.session_resumed = connack.session_present
        properties = connack.properties
        if properties is not None:
            self.max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
            self._free_slots = min(_SEND_MAXIMUM, getattr(properties, "ReceiveMaximum", _SEND_MAXIMUM))

    async def disconnect(self, timeout_s: float = 2.0) -> None:
        """Say DISCONNECT, so that the broker does not publish the will, and close."""
        self._client.disconnect()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.ended), timeout_s)
        self.abort("closed")

    def abort(self, reason: str, *, taken_over: bool = False) -> None:
        """Close the socket without a word, as a crash would; does nothing on a connection that has ended."""
        sock = self._client.socket()
        if sock is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()
        self._end(ConnectionLost(reason, taken_over))

    def _end(self, lost: ConnectionLost) -> None:
        if self.ended.done():
            return
        self.ended.set_result(lost)
        if self._misc_timer is not None:
            self._misc_timer.cancel()
        if not self._connack.done():
            self._connack.set_exception(NoAnswer(f"the connection was closed: {lost.reason}"))
            self._connack.exception()  # nobody may be waiting any more
        for waiter in (*self._acks.values(), *self._slot_queue):
            if not waiter.done():
                waiter.set_exception(ConnectionEnded(lost.reason))
        self._acks.clear()
        self._slot_queue.clear()

    # ------------------------------------------------------------------ using it

    async def publish(self, topic: str, payload: bytes, retain: bool) -> None:
        """Publish at QoS 1 and wait for the PUBACK.

        Raises:
            ConnectionEnded: The connection ended first; the broker may or may not have the message.
            BrokerRefused: The PUBACK says no.
        """
        await self._take_slot()
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            self._free_slot()
            raise ConnectionEnded(paho.error_string(info.rc))
        reason = await self._acknowledged(info.mid)
        if reason.is_failure:
            raise BrokerRefused(f"the broker refused a message to {topic}: {reason}")

    async def subscribe(self, topic_filter: str) -> None:
        """Subscribe at QoS 1 and wait for the SUBACK.

        Raises:
            ConnectionEnded: The connection ended first, or no SUBACK came in time (then it is ended).
            BrokerRefused: The SUBACK says no.
        """
        for reason in await self._exchange(self._client.subscribe(topic_filter, qos=1)):
            if reason.is_failure:
                raise BrokerRefused(f"the broker refused the subscription to {topic_filter}: {reason}")

    async def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe and wait for the UNSUBACK.

        Raises:
            ConnectionEnded: The connection ended first, or no UNSUBACK came in time (then it is ended).
        """
        await self._exchange(self._client.unsubscribe(topic_filter))

    def acknowledge(self, packet_id: int) -> None:
        """Tell the broker that a delivered message has been handled."""
        if not self.ended.done():
            self._client.ack(packet_id, 1)

    async def _exchange(self, sent: tuple[int, int | None]) -> Any:
        code, packet_id = sent
        if code != paho.MQTT_ERR_SUCCESS or packet_id is None:
            raise ConnectionEnded(paho.error_string(code))
        try:
            return await asyncio.wait_for(self._acknowledged(packet_id), self._options.connect_timeout_s)
        except asyncio.TimeoutError:
            self.abort("the broker does not answer")
            raise ConnectionEnded("the broker does not answer") from None

    async def _acknowledged(self, packet_id: int) -> Any:
        if self.ended.done():
            raise ConnectionEnded(self.ended.result().reason)
        waiter = self._acks[packet_id] = self._loop.create_future()
        return await waiter

    async def _take_slot(self) -> None:
        if self.ended.done():
            raise ConnectionEnded(self.ended.result().reason)
        if self._free_slots > 0 and not self._slot_queue:
            self._free_slots -= 1
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._slot_queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._free_slot()  # it was ours already: pass it on
            raise

    def _free_slot(self) -> None:
        while self._slot_queue:
            turn = self._slot_queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free_slots += 1

    # ------------------------------------------------------------------ paho's side

    def _make_client(self, will: Will | None) -> paho.Client:
        options = self._options
        is_v5 = self._version == MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            clean_session=None if is_v5 else options.session_expiry_s == 0,
            protocol=self._version,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = options.connect_timeout_s
        client.max_inflight_messages_set(0)  # our slots decide, and know the broker's limit
        if options.username is not None:
            client.username_pw_set(options.username, options.password)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_acknowledged
        client.on_unsubscribe = self._on_acknowledged
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_socket_register_write
        client.on_socket_unregister_write = self._on_socket_unregister_write
        return client

    def _on_connect(
        self, _client: Any, _data: Any, flags: paho.ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if not self._connack.done():
            self._connack.set_result(_Connack(flags.session_present, reason, properties))

    def _on_disconnect(
        self, _client: Any, _data: Any, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: Any
    ) -> None:
        taken_over = reason.value == _TAKEN_OVER
        if taken_over:
            said = "another client connected with the same client id"
        elif flags.is_disconnect_packet_from_server:
            said = f"the broker ended it: {reason}"
        elif reason.getName() == "Keep alive timeout":
            said = f"nothing was heard of the broker for {2 * self._options.keepalive_s} s"
        else:
            said = "the connection was closed at the other end"
        self._end(ConnectionLost(said, taken_over))

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        packet_id = message.mid if message.qos else None
        try:
            topic = message.topic
        except UnicodeDecodeError:
            _log.warning("discarded a message whose topic is not UTF-8")
            if packet_id is not None:
                self.acknowledge(packet_id)
            return
        self._deliver(self, Message(topic, bytes(message.payload), bool(message.retain)), packet_id)

    def _on_publish(self, _client: Any, _data: Any, packet_id: int, reason: ReasonCode, _properties: Any) -> None:
        self._free_slot()
        self._resolve(packet_id, reason)

    def _on_acknowledged(self, _client: Any, _data: Any, packet_id: int, reasons: Any, _properties: Any) -> None:
        self._resolve(packet_id, reasons)

    def _resolve(self, packet_id: int, result: Any) -> None:
        waiter = self._acks.pop(packet_id, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(result)

    # ------------------------------------------------------------------ the socket's side
    # paho calls the first and the third also from the connecting thread, before the loop knows of the socket.

    def _on_socket_open(self, _client: Any, _data: Any, sock: Any) -> None:
        # Without it a small message behind another waits for the other end's delayed TCP acknowledgement, up to 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def watch() -> None:
            if sock.fileno() >= 0 and not self.ended.done():
                self._loop.add_reader(sock.fileno(), self._read)
                self._misc()

        self._loop.call_soon_threadsafe(watch)

    def _on_socket_close(self, _client: Any, _data: Any, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())

    def _on_socket_register_write(self, _client: Any, _data: Any, sock: Any) -> None:
        def watch() -> None:
            if sock.fileno() >= 0 and not self.ended.done():
                self._loop.add_writer(sock.fileno(), self._drive, self._client.loop_write)

        self._loop.call_soon_threadsafe(watch)

    def _on_socket_unregister_write(self, _client: Any, _data: Any, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_writer(sock.fileno())

    def _read(self) -> None:
        self._drive(self._client.loop_read)
        sock = self._client.socket()
        while isinstance(sock, ssl.SSLSocket) and not self.ended.done() and sock.pending():
            self._drive(self._client.loop_read)

    def _misc(self) -> None:
        self._misc_timer = self._loop.call_later(1.0, self._misc)
        self._drive(self._client.loop_misc)

    def _drive(self, step: Callable[[], Any]) -> None:
        if self.ended.done():
            return
        try:
            step()
        except Exception as error:  # noqa: BLE001 - what a hostile packet makes paho raise ends this connection only
            _log.warning("connection given up: %r", error)
            self.abort(str(error) or type(error).__name__)
