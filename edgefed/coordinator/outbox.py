"""Control messages on their way out: in order, without making whoever decides wait for the broker."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from edgefed.errors import PayloadTooLarge
from edgefed.protocol.messages.down import DownMessage
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Transport

__all__ = ["Outbox"]

_log = logging.getLogger(__name__)


class Outbox:
    """A queue in front of a transport. Everything in it is small and can be said again, so it is not kept on disk."""

    def __init__(self, transport: Transport, topics: Topics) -> None:
        self._transport = transport
        self._topics = topics
        self._queue: asyncio.Queue[tuple[str, bytes, bool]] = asyncio.Queue()

    def tell(self, device: str, message: DownMessage) -> None:
        """Sends a message to one device."""
        self._queue.put_nowait((self._topics.device(device, "down"), encode(message), False))

    def post(self, topic: str, message: msgspec.Struct) -> None:
        """Publishes a retained message."""
        self._queue.put_nowait((topic, encode(message), True))

    def clear(self, topic: str) -> None:
        """Takes away what the broker has retained on a topic."""
        self._queue.put_nowait((topic, b"", True))

    async def drained(self) -> None:
        """Returns once the broker has everything."""
        await self._queue.join()

    async def run(self) -> None:
        """Publishes, until cancelled."""
        while True:
            topic, payload, retain = await self._queue.get()
            try:
                await self._transport.publish(topic, payload, retain=retain)
            except PayloadTooLarge as error:
                _log.error("on %s: %s; raise the broker's limit", topic, error)
            finally:
                self._queue.task_done()
