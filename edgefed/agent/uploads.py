"""Delivering an answer: offer it, send what the aggregator grants, until it acknowledges, whatever gets lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

from edgefed.protocol.chunks import Ranges
from edgefed.protocol.messages.down import Acknowledged, UploadGrant, UploadProgress
from edgefed.protocol.messages.up import EvaluationReport, UpdateOffer, UpMessage
from edgefed.transport.base import Transport
from edgefed.transport.blob_sender import Credit, send_ranges
from edgefed.waiting import wait_at_most

__all__ = ["Uploads"]

_log = logging.getLogger(__name__)

_FIRST_PATIENCE_S = 5.0
_LONGEST_PATIENCE_S = 60.0
_CHUNKS_IN_FLIGHT = 8

_News: TypeAlias = "UploadGrant | UploadProgress | Acknowledged | None"
"""What the aggregator says of an upload; None: it is time to offer again."""


class Uploads:
    """The answer that this device is delivering at the moment; one at a time."""

    def __init__(self, transport: Transport, topic: str, send: Callable[[UpMessage], Awaitable[None]]) -> None:
        self._transport = transport
        self._topic = topic
        self._send = send
        self._news: asyncio.Queue[_News] | None = None  # while something is being delivered
        self._credit: Credit | None = None
        self._sending = ""
        self._sender: asyncio.Task[None] | None = None
        self._interrupted = False

    def hear(self, message: UploadGrant | UploadProgress | Acknowledged) -> None:
        """Takes what the aggregator says about an upload."""
        if isinstance(message, UploadProgress) and self._credit is not None and message.sha256 == self._sending:
            self._credit.confirm(message.received_bytes)
        self._tell(message)

    def interrupt(self) -> None:
        """The connection is gone: nothing is sent again unasked, since the receiver will say what it has."""
        if self._sender is not None:
            self._sender.cancel()
            self._interrupted = True

    def ask_again(self) -> None:
        """After a reconnect: what was said meanwhile may be lost, so offer again at once."""
        self._tell(None)

    def _tell(self, news: _News) -> None:
        if self._news is not None:
            self._news.put_nowait(news)

    async def deliver(self, offer: UpdateOffer | EvaluationReport, path: Path | None) -> Acknowledged:
        """Returns the aggregator's final word on an answer. Waits for as long as it takes: the caller bounds it.

        Args:
            offer: the announcement of the update, or an evaluation, which is complete in itself.
            path: the update's file; None for an evaluation.
        """
        sha256 = offer.sha256 if isinstance(offer, UpdateOffer) else ""
        about = (offer.run, offer.round, sha256)
        patience_s = _FIRST_PATIENCE_S
        news: asyncio.Queue[_News] = asyncio.Queue()
        self._news = news
        try:
            await self._send(offer)
            while True:
                message = await _next(news, patience_s)
                if isinstance(message, Acknowledged) and (message.run, message.round, message.sha256) == about:
                    return message
                if isinstance(message, UploadGrant) and message.sha256 == sha256 and path is not None:
                    await self._end_sender()
                    self._sender = asyncio.create_task(self._send_file(message, path), name="send-update")
                if self._interrupted:
                    await self._end_sender()
                silent = message is None
                patience_s = min(_LONGEST_PATIENCE_S, patience_s * 1.5) if silent else _FIRST_PATIENCE_S
                if silent and (self._sender is None or self._sender.done()):
                    await self._send(offer)
        finally:
            self._news = None
            await self._end_sender()

    async def _end_sender(self) -> None:
        """Ends the sending; what went wrong in it is no matter, since what is missing is asked for again."""
        sender, self._sender, self._interrupted = self._sender, None, False
        if sender is None:
            return
        sender.cancel()
        (outcome,) = await asyncio.gather(sender, return_exceptions=True)
        if isinstance(outcome, Exception):
            _log.warning("sending an update was interrupted: %s", outcome)

    async def _send_file(self, grant: UploadGrant, path: Path) -> None:
        missing = Ranges(grant.missing)
        size_bytes = path.stat().st_size
        self._sending = grant.sha256
        self._credit = Credit(
            grant.window_chunks * grant.chunk_bytes,
            ahead_pieces=grant.window_chunks,
            received_bytes=size_bytes - missing.total_bytes,
        )
        await send_ranges(
            self._transport,
            self._topic,
            path,
            grant.sha256,
            missing,
            chunk_bytes=grant.chunk_bytes,
            window=_CHUNKS_IN_FLIGHT,
            credit=self._credit,
        )


async def _next(news: asyncio.Queue[_News], patience_s: float) -> _News:
    """Returns the next word from the aggregator, or None when it is time to offer again."""
    with contextlib.suppress(asyncio.TimeoutError):
        return await wait_at_most(news.get(), patience_s)
    return None
