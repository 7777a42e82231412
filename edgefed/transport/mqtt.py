"""The promises of ``transport.base`` over an MQTT broker: version 5, or 3.1.1 where it speaks only that."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timezone

from paho.mqtt.enums import MQTTProtocolVersion

from edgefed.errors import BrokerRefused, BrokerUnreachable, ConfigError, Disconnected, PayloadTooLarge
from edgefed.transport.backoff import Backoff
from edgefed.transport.base import Connected, Event, Message, Will
from edgefed.transport.mqtt_connection import ConnectionEnded, MqttConnection, NoAnswer, VersionRefused
from edgefed.transport.mqtt_inbox import MqttInbox
from edgefed.transport.mqtt_options import MqttOptions
from edgefed.transport.tls_problems import explain_refusal, explain_unreachable
from edgefed.waiting import wait_at_most

__all__ = ["MqttOptions", "MqttTransport", "connect_mqtt"]

_log = logging.getLogger(__name__)

_HEADER_ROOM_BYTES = 1024  # fixed header, topic, packet id, properties of a PUBLISH
_MAX_SENDS = 5
_SILENCE_S = 3.0  # after which a broker that does not answer an MQTT 5 CONNECT is asked in 3.1.1
_TAKEN_OVER_DELAY_S = 15.0
_GOODBYE_S = 5.0  # with what closing takes besides, within the 10 s that our services are given to stop


@contextlib.asynccontextmanager
async def connect_mqtt(
    options: MqttOptions,
    will: Will | None = None,
    *,
    retry_first: bool = False,
    draw: Callable[[], float] = random.random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[MqttTransport]:
    """Connect, keep connected, and close at the end of the block.

    Args:
        options: Where and how.
        will: Published by the broker when this client disappears.
        retry_first: Wait for a broker that is not there yet, instead of raising ``BrokerUnreachable``.
        draw: Source of jitter, uniform on [0, 1).
        sleep: How to wait between attempts.

    Raises:
        BrokerUnreachable: Nobody answers, and ``retry_first`` is off.
        BrokerRefused: The broker answered no: credentials, permission, client id, protocol version.
        ConfigError: TLS files cannot be used.
    """
    transport = MqttTransport(options, will, Backoff(max_s=options.reconnect_max_s, draw=draw), sleep)
    await transport.start(retry_first=retry_first)
    try:
        yield transport
    finally:
        await transport.close()


class MqttTransport:
    """A ``Transport``; made by ``connect_mqtt``."""

    def __init__(
        self,
        options: MqttOptions,
        will: Will | None,
        backoff: Backoff,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._options = options
        self._will = will
        self._backoff = backoff
        self._sleep = sleep
        self._version: MQTTProtocolVersion | None = None  # the one that worked
        self._connection: MqttConnection | None = None
        self._changed = asyncio.Event()  # set while connected, and for good once closed
        self._subscriptions: dict[str, None] = {}
        self._unwanted: dict[str, None] = {}  # that a broker which has kept our session may still hold us to
        self._inbox = MqttInbox()
        self._closed = False
        self._keeper: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ the Transport interface

    @property
    def max_payload_bytes(self) -> int:
        """Largest payload that ``publish`` takes now."""
        return self._limit(self._connection)

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float | None = None
    ) -> None:
        """See ``Transport.publish``."""
        if timeout_s is None:
            return await self._publish(topic, payload, retain)
        try:
            return await wait_at_most(self._publish(topic, payload, retain), timeout_s)
        except asyncio.TimeoutError:
            raise Disconnected(
                f"the broker at {self._options.address} did not acknowledge a message to {topic} within {timeout_s:g} s"
            ) from None

    async def subscribe(self, topic_filter: str) -> None:
        """See ``Transport.subscribe``."""
        while True:
            connection = await self._ready()
            try:
                await connection.subscribe(topic_filter)
            except ConnectionEnded:
                continue
            except BrokerRefused as error:
                raise self._explained(error) from error
            self._subscriptions[topic_filter] = None
            self._unwanted.pop(topic_filter, None)
            return

    async def unsubscribe(self, topic_filter: str) -> None:
        """See ``Transport.unsubscribe``."""
        self._subscriptions.pop(topic_filter, None)
        self._unwanted[topic_filter] = None
        if self._closed or self._live() is not None:
            connection = await self._ready()
            with contextlib.suppress(ConnectionEnded):
                await connection.unsubscribe(topic_filter)
                self._unwanted.pop(topic_filter, None)

    async def events(self) -> AsyncIterator[Event]:
        """See ``Transport.events``."""
        while (event := await self._inbox.next()) is not None:
            yield event

    async def close(self, final: Message | None = None) -> None:
        """See ``Transport.close``."""
        if self._closed:
            return
        if final is not None:
            await self._publish_final(final)
        self._closed = True
        self._changed.set()
        self._inbox.close()
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect()

    # ------------------------------------------------------------------ publishing

    async def _publish(self, topic: str, payload: bytes, retain: bool) -> None:
        for _ in range(_MAX_SENDS):
            connection = await self._ready()
            limit = self._limit(connection)
            if len(payload) > limit:
                raise PayloadTooLarge(len(payload), limit)
            try:
                return await connection.publish(topic, payload, retain)
            except ConnectionEnded:
                continue
            except BrokerRefused as error:
                raise self._explained(error) from error
        raise Disconnected(
            f"{_MAX_SENDS} connections to {self._options.address} in a row ended while a message of {len(payload)} "
            f"bytes to {topic} was under way. Either another client uses the client id {self._options.client_id!r}, "
            "or the broker does not take packets of this size (then set max_payload_bytes to its limit)"
        )

    def _explained(self, error: BrokerRefused) -> BrokerRefused:
        """Says of what the broker forbids whom it may take us for."""
        return BrokerRefused(f"{error}; {explain_refusal(self._options)}")

    async def _publish_final(self, final: Message) -> None:
        timeout_s = min(_GOODBYE_S, self._options.connect_timeout_s)
        if self._connection is None:
            _log.warning("closed without a connection: %s keeps the will", final.topic)
            return
        try:
            await self.publish(final.topic, final.payload, retain=final.retained, timeout_s=timeout_s)
        except (Disconnected, BrokerRefused, PayloadTooLarge) as error:
            _log.warning("the last message to %s was not published: %s", final.topic, error)

    def _limit(self, connection: MqttConnection | None) -> int:
        told = connection.max_packet_bytes if connection is not None else None
        if told is None:
            return self._options.max_payload_bytes
        return max(0, min(self._options.max_payload_bytes, told - _HEADER_ROOM_BYTES))

    async def _ready(self) -> MqttConnection:
        while True:
            if self._closed:
                raise Disconnected(f"the connection to {self._options.address} was closed")
            if (connection := self._live()) is not None:
                return connection
            self._changed.clear()
            await self._changed.wait()

    def _live(self) -> MqttConnection | None:
        connection = self._connection
        return connection if connection is not None and not connection.ended.done() else None

    # ------------------------------------------------------------------ keeping the connection

    async def start(self, *, retry_first: bool) -> None:
        """Make the first connection, then keep one up in a task of its own. Raises as ``connect_mqtt``."""
        connection = await self._connect_patiently() if retry_first else await self._connect()
        self._adopt(connection)
        self._keeper = asyncio.create_task(self._keep(connection))
        self._keeper.add_done_callback(self._kept)

    async def _keep(self, connection: MqttConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            since = loop.time()
            lost = await asyncio.shield(connection.ended)
            self._connection = None
            _log.warning("lost the broker at %s: %s", self._options.address, lost.reason)
            self._inbox.lose(lost)
            self._backoff.succeeded(loop.time() - since)
            await self._sleep(self._backoff.next_delay_s(_TAKEN_OVER_DELAY_S if lost.taken_over else 0.0))
            connection = await self._connect_patiently(give_up_on_refusal=False)
            self._adopt(connection)

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and keeper.exception() is not None:  # a bug: better closed than silent
            _log.critical("the connection to %s is no longer kept", self._options.address, exc_info=keeper.exception())
            self._closed = True
            self._changed.set()
            self._inbox.close()

    def _adopt(self, connection: MqttConnection) -> None:
        self._connection = connection
        self._changed.set()
        self._inbox.adopt(connection, Connected(connection.session_resumed, self._limit(connection)))
        _log.info("connected to the broker at %s", self._options.address)

    async def _connect_patiently(self, *, give_up_on_refusal: bool = True) -> MqttConnection:
        while True:
            try:
                return await self._connect()
            except BrokerUnreachable as error:
                problem = str(error)
            except (BrokerRefused, ConfigError) as error:  # ConfigError: TLS files, which may be being replaced
                if give_up_on_refusal:
                    raise
                problem = str(error)
            delay_s = self._backoff.next_delay_s()
            _log.warning("%s; trying again in %.1f s", problem, delay_s)
            await self._sleep(delay_s)

    async def _connect(self) -> MqttConnection:
        """Return a connection with all subscriptions in force, and no other."""
        address = self._options.address
        try:
            connection = await self._open()
            try:
                for topic_filter in list(self._subscriptions):
                    await connection.subscribe(topic_filter)
                while topic_filter := next(iter(self._unwanted), ""):
                    await connection.unsubscribe(topic_filter)
                    self._unwanted.pop(topic_filter)
            except BaseException:
                connection.abort("could not subscribe again")
                raise
        except (BrokerUnreachable, ConnectionEnded) as error:
            hint = explain_unreachable(self._options, error, datetime.now(timezone.utc))
            raise BrokerUnreachable(f"no broker answers at {address}: {error}; {hint}") from error
        except BrokerRefused as error:
            raise BrokerRefused(
                f"the broker at {address} refused client {self._options.client_id!r}: {error}; check user name, "
                "password and what the broker allows this client"
            ) from error
        return connection

    async def _open(self) -> MqttConnection:
        wanted = self._options.protocol
        timeout_s = self._options.connect_timeout_s
        if wanted != "auto" or self._version is not None:
            version = self._version or _VERSIONS[wanted]
            return await self._open_version(version, timeout_s)
        try:
            connection = await self._open_version(MQTTProtocolVersion.MQTTv5, timeout_s, _SILENCE_S)
        except (NoAnswer, VersionRefused) as error:
            _log.info("no MQTT 5 at %s (%s): trying 3.1.1", self._options.address, error)
            connection = await self._open_version(MQTTProtocolVersion.MQTTv311, timeout_s)
            self._version = MQTTProtocolVersion.MQTTv311
        else:
            self._version = MQTTProtocolVersion.MQTTv5
        return connection

    async def _open_version(
        self, version: MQTTProtocolVersion, timeout_s: float, silence_s: float | None = None
    ) -> MqttConnection:
        self._inbox.forget_early()
        connection = MqttConnection(self._options, version, self._will, self._inbox.deliver)
        await connection.open(timeout_s, silence_s)
        return connection


_VERSIONS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}
