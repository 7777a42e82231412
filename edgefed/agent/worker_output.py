"""What the worker and its libraries print beside their frames: an entry of the agent's log for every line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

__all__ = ["PrintedLines"]

_log = logging.getLogger(__name__)
_BLOCK_BYTES = 1 << 14
_LONGEST_LINE_BYTES = 1 << 14  # a longer one is cut into several
_LAST_WORDS_S = 0.5


class PrintedLines:
    """A pipe that a process is given as its stderr, and a task that logs what comes out of it.

    The pipe is one of its own, and not one of asyncio's: that would have the end of the worker wait for the end of
    every process that the worker has started.
    """

    def __init__(self, transport: asyncio.ReadTransport, reading: asyncio.Task[None], end_of_writer: int) -> None:
        self._transport = transport
        self._reading = reading
        self._end_of_writer = end_of_writer

    @classmethod
    async def begin(cls) -> PrintedLines:
        """Opens the pipe and listens to it."""
        ours, theirs = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", buffering=0)
        )
        return cls(transport, asyncio.create_task(_log_lines(reader), name="worker-output"), theirs)

    def fileno(self) -> int:
        """The end that the process writes to."""
        return self._end_of_writer

    def given(self) -> None:
        """Lets go of the writer's end, which the process has by now, or will never have."""
        os.close(self._end_of_writer)

    async def end(self) -> None:
        """Stops listening, once the last words of a process that has ended are logged."""
        # What the process has started may live on and keep the pipe open.
        await asyncio.wait({self._reading}, timeout=_LAST_WORDS_S)
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        self._transport.close()


async def _log_lines(reader: asyncio.StreamReader) -> None:
    rest = b""
    try:
        while block := await reader.read(_BLOCK_BYTES):
            *lines, rest = (rest + block).replace(b"\r", b"\n").split(b"\n")
            if len(rest) > _LONGEST_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                _log_line(line)
    finally:
        _log_line(rest)


def _log_line(line: bytes) -> None:
    if text := line.decode(errors="replace").rstrip():
        _log.warning("%s", text)
