"""A transport whose messages are signed on their way out, and checked on their way in."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Protocol

from edgefed.errors import MessageError, Outdated
from edgefed.transport.base import Distrusted, Event, Message, Transport, Will

__all__ = ["Seal", "SignedTransport", "signed_as_told", "will_as_told"]

_log = logging.getLogger(__name__)


class Seal(Protocol):
    """What signs and checks."""

    @property
    def room_bytes(self) -> int:
        """How much longer a message becomes, at most."""
        ...

    def outgoing(self, topic: str, payload: bytes) -> bytes:
        """Returns a message as it is to be published."""
        ...

    def incoming(self, topic: str, payload: bytes) -> bytes:
        """Returns what a message says. Raises ``MessageError`` where it must not be listened to."""
        ...

    def close(self) -> None:
        """Keeps what is worth remembering."""
        ...


class SignedTransport:
    """A ``Transport`` over another one. Of what the seal does not let through nobody hears more than why.

    Args:
        inner: carries the messages.
        seal: signs and checks them.
        log_level: at which each that is not listened to is logged; lower for who shows the ``Distrusted`` anyway.
    """

    def __init__(self, inner: Transport, seal: Seal, *, log_level: int = logging.WARNING) -> None:
        self._inner = inner
        self._seal = seal
        self._log_level = log_level

    @property
    def max_payload_bytes(self) -> int:
        """Largest payload that ``publish`` takes now: there is room for its signature."""
        return max(0, self._inner.max_payload_bytes - self._seal.room_bytes)

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float | None = None
    ) -> None:
        """See ``Transport.publish``."""
        await self._inner.publish(topic, self._seal.outgoing(topic, payload), retain=retain, timeout_s=timeout_s)

    async def subscribe(self, topic_filter: str) -> None:
        """See ``Transport.subscribe``."""
        await self._inner.subscribe(topic_filter)

    async def unsubscribe(self, topic_filter: str) -> None:
        """See ``Transport.unsubscribe``."""
        await self._inner.unsubscribe(topic_filter)

    async def events(self) -> AsyncIterator[Event]:
        """See ``Transport.events``."""
        async for event in self._inner.events():
            if not isinstance(event, Message):
                yield event
                continue
            try:
                said = self._seal.incoming(event.topic, event.payload)
            except MessageError as error:
                _log.log(self._log_level, "a message on %s is not listened to: %s", event.topic, error)
                yield Distrusted(event.topic, str(error), isinstance(error, Outdated))
                continue
            yield Message(event.topic, said, event.retained)

    async def close(self, final: Message | None = None) -> None:
        """See ``Transport.close``."""
        if final is not None:
            final = Message(final.topic, self._seal.outgoing(final.topic, final.payload), final.retained)
        try:
            await self._inner.close(final)
        finally:
            self._seal.close()


def signed_as_told(transport: Transport, seal: Seal | None, *, log_level: int = logging.WARNING) -> Transport:
    """Returns the transport behind a seal, see ``SignedTransport``; the transport itself where there is none."""
    return transport if seal is None else SignedTransport(transport, seal, log_level=log_level)


def will_as_told(will: Will, seal: Seal | None) -> Will:
    """Returns a will behind a seal: signed before the connection is made, published by the broker when it is gone."""
    return will if seal is None else Will(will.topic, seal.outgoing(will.topic, will.payload))
