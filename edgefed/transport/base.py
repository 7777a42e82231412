"""What the rest of edgefed may expect from a message broker, whichever one it is.

Three implementations keep these promises and pass one test suite: ``transport.mqtt`` (a real broker),
``transport.in_memory`` (one process, with loss on request) and ``transport.mqtt`` again over
``transport.embedded_broker``.

The promises, in the order in which code leans on them:

* **At least once.** A message whose ``publish`` returned is with the broker. A message may arrive twice;
  receivers tell by content.
* **Nothing received is forgotten.** A message counts as received when the consumer comes back for the next
  event, so one that was being handled when the process died is delivered again to the same client id.
* **Bounded memory.** What waits for the consumer is bounded. A consumer that falls behind slows the broker down
  towards it; when the broker's own queue for it is full (Mosquitto: 1000 messages) the broker drops, so senders
  of many messages watch a ``blobs.Credit`` and receivers ask again for what is missing.
* **Reconnecting is not the caller's business.** Subscriptions come back, publishes under way are sent again;
  ``Connected`` and ``ConnectionLost`` events say when, because retained state may need publishing anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

__all__ = [
    "DEFAULT_MAX_PAYLOAD_BYTES",
    "Connected",
    "ConnectionLost",
    "Distrusted",
    "Event",
    "Message",
    "Transport",
    "Will",
]

DEFAULT_MAX_PAYLOAD_BYTES = 256 * 1024
"""Largest payload published where neither the broker nor the operator says otherwise."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, received or to be published.

    Attributes:
        topic: The topic it was published to; no wildcards.
        payload: The content, as sent.
        retained: Received: the broker kept it from earlier (it is not news). To be published: the broker shall
            keep it.
    """

    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection was established, or established again; all subscriptions are in force.

    Attributes:
        session_resumed: The broker kept this client's session: what arrived meanwhile is delivered, nothing was
            missed beyond the broker's own queue limit.
        max_payload_bytes: Largest payload that this broker takes from us on this connection.
    """

    session_resumed: bool
    max_payload_bytes: int


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """An established connection went away; the transport is already trying to get it back.

    Attributes:
        reason: In words, for a log line.
        taken_over: Another client connected with the same client id (only MQTT 5 brokers say so).
    """

    reason: str
    taken_over: bool = False


@dataclass(frozen=True, slots=True)
class Distrusted:
    """A message arrived that must not be listened to; only a ``SignedTransport`` says so.

    Attributes:
        topic: The topic it was published to.
        reason: In words.
        outdated: Its author has said it once, and something later since; otherwise it is not of its author.
    """

    topic: str
    reason: str
    outdated: bool


Event: TypeAlias = Message | Connected | ConnectionLost | Distrusted


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained and at QoS 1, when this client disappears without saying goodbye."""

    topic: str
    payload: bytes


class Transport(Protocol):
    """A client of one broker. See the module's docstring for the promises that hold throughout."""

    @property
    def max_payload_bytes(self) -> int:
        """Largest payload that ``publish`` takes now; a reconnect may change it."""
        ...

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float | None = None
    ) -> None:
        """Publish at QoS 1 and return once the broker has acknowledged.

        A lost connection is waited out and the message sent again. Several publishes may be under way at once;
        those started one after the other by one task arrive in that order, unless a reconnect falls between.

        Args:
            topic: Where to; no wildcards.
            payload: At most ``max_payload_bytes``.
            retain: The broker keeps this message for later subscribers; an empty payload removes what it kept.
            timeout_s: Give up after so many seconds; ``None`` waits for as long as it takes.

        Raises:
            PayloadTooLarge: The payload is over ``max_payload_bytes``; nothing was sent.
            BrokerRefused: The broker said no, for example because this client may not publish there.
            Disconnected: ``timeout_s`` passed, the transport was closed, or connections kept breaking over this
                message.
        """
        ...

    async def subscribe(self, topic_filter: str) -> None:
        """Subscribe at QoS 1 and return once the broker has confirmed; repeated by itself after a reconnect.

        Raises:
            BrokerRefused: The broker does not let this client read there.
            Disconnected: The transport was closed meanwhile.
        """
        ...

    async def unsubscribe(self, topic_filter: str) -> None:
        """Undo ``subscribe``; returns once the broker has confirmed, and at once where there is no connection.

        The next connection begins without it then: whoever gives something up waits for no broker to come back.

        Raises:
            Disconnected: The transport is closed.
        """
        ...

    def events(self) -> AsyncIterator[Event]:
        """Everything that happens, in order, for one consumer; ends when the transport is closed."""
        ...

    async def close(self, final: Message | None = None) -> None:
        """Say goodbye, so that the will is not published; afterwards every call raises ``Disconnected``.

        Args:
            final: Published first, if the connection stands.
        """
        ...
