"""One MQTT connection on asyncio, from CONNECT to its end. ``transport.mqtt`` makes the next one.

paho-mqtt does the packets, driven by ``transport.paho_loop``. aiomqtt drives it in the same way, but
keeps to itself what the promises in ``transport.base`` need: the CONNACK's properties (packet limit, receive
maximum), whether a session was resumed, the reason code of a PUBACK, and the moment at which a received message
is acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.properties import Properties

from edgefed.errors import BrokerRefused, BrokerUnreachable
from edgefed.transport.base import ConnectionLost, Message, Will
from edgefed.transport.mqtt_options import MqttOptions
from edgefed.transport.paho_client import connect_blocking, make_client
from edgefed.transport.paho_loop import PahoLoop
from edgefed.transport.send_slots import SendSlots
from edgefed.waiting import wait_at_most

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

__all__ = ["ConnectionEnded", "MqttConnection", "NoAnswer", "VersionRefused"]

_log = logging.getLogger(__name__)

_SEND_MAXIMUM = 64
"""Publishes that we have under way at most; fewer where the broker's own receive maximum is smaller."""

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
        self._slots = SendSlots(_SEND_MAXIMUM)
        self._client = make_client(options, version, will)
        self._listen_to(self._client)
        self._io = PahoLoop(self._client, self.abort)

    # ------------------------------------------------------------------ opening and closing

    async def open(self, timeout_s: float, silence_s: float | None = None) -> None:
        """Connect and wait for the broker's word.

        Args:
            timeout_s: How long all of it may take.
            silence_s: How long the broker may leave CONNECT without an answer; on a slow link, where TCP and TLS took
                long, twice as long as they did.

        Raises:
            BrokerUnreachable: Nobody there, TLS failed, no answer in time, or the broker is not available now.
            BrokerRefused: The broker said no, and will say so again.
            NoAnswer: It let us connect and then did not answer CONNECT.
            VersionRefused: It does not speak this version of MQTT.
        """
        started = self._loop.time()
        try:
            await wait_at_most(self._io.connect(self._connect), timeout_s)
            took_s = self._loop.time() - started
            left_s = max(0.1, timeout_s - took_s)
            if silence_s is not None:
                left_s = min(left_s, max(silence_s, 2 * took_s))
            connack = await wait_at_most(asyncio.shield(self._connack), left_s)
        except asyncio.TimeoutError:
            error_type = BrokerUnreachable if self._client.socket() is None else NoAnswer
            self.abort("no answer")
            raise error_type(f"no answer within {self._loop.time() - started:.1f} s") from None
        except OSError as error:
            self.abort(str(error))
            raise BrokerUnreachable(str(error) or type(error).__name__) from error
        except BaseException:
            self.abort("given up")
            raise
        self._accept(connack)

    def _connect(self) -> None:
        connect_blocking(self._client, self._options, self._version)

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
            self._slots.free = min(_SEND_MAXIMUM, getattr(properties, "ReceiveMaximum", _SEND_MAXIMUM))

    async def disconnect(self, timeout_s: float = 2.0) -> None:
        """Say DISCONNECT, so that the broker does not publish the will, and close."""
        self._client.disconnect()
        with contextlib.suppress(asyncio.TimeoutError):
            await wait_at_most(asyncio.shield(self.ended), timeout_s)
        self.abort("closed")

    def abort(self, reason: str, *, taken_over: bool = False) -> None:
        """Close the socket without a word, as a crash would; does nothing on a connection that has ended."""
        self._io.close_socket()
        self._end(ConnectionLost(reason, taken_over))

    def _end(self, lost: ConnectionLost) -> None:
        if self.ended.done():
            return
        self.ended.set_result(lost)
        self._io.stop()
        if not self._connack.done():
            self._connack.set_exception(NoAnswer(lost.reason))
            self._connack.exception()  # nobody may be waiting any more
        self._slots.turn_away(lambda: ConnectionEnded(lost.reason))
        for waiter in self._acks.values():
            if not waiter.done():
                waiter.set_exception(ConnectionEnded(lost.reason))
        self._acks.clear()

    # ------------------------------------------------------------------ using it

    async def publish(self, topic: str, payload: bytes, retain: bool) -> None:
        """Publish at QoS 1 and wait for the PUBACK.

        Raises:
            ConnectionEnded: The connection ended first; the broker may or may not have the message.
            BrokerRefused: The PUBACK says no.
        """
        self._check_alive()
        await self._slots.take()
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            self._slots.give_back()
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
            return await wait_at_most(self._acknowledged(packet_id), self._options.connect_timeout_s)
        except asyncio.TimeoutError:
            self.abort("the broker does not answer")
            raise ConnectionEnded("the broker does not answer") from None

    async def _acknowledged(self, packet_id: int) -> Any:
        self._check_alive()
        waiter = self._acks[packet_id] = self._loop.create_future()
        return await waiter

    def _check_alive(self) -> None:
        if self.ended.done():
            raise ConnectionEnded(self.ended.result().reason)

    # ------------------------------------------------------------------ paho's side

    def _listen_to(self, client: paho.Client) -> None:
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_acknowledged
        client.on_unsubscribe = self._on_acknowledged

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
        self._slots.give_back()
        self._resolve(packet_id, reason)

    def _on_acknowledged(self, _client: Any, _data: Any, packet_id: int, reasons: Any, _properties: Any) -> None:
        self._resolve(packet_id, reasons)

    def _resolve(self, packet_id: int, result: Any) -> None:
        waiter = self._acks.pop(packet_id, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(result)
