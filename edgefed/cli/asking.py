"""Questions to whoever sits at the terminal, asked while other things go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading

import typer

from edgefed.errors import ConfigError

__all__ = ["yes_or_no"]


async def yes_or_no(question: str) -> bool:
    """Returns whether the answer on standard input begins with y.

    Raises:
        ConfigError: standard input has ended.
    """
    typer.echo(question, nl=False, err=True)
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    def deliver(line: bytes) -> None:
        if not answer.done():
            answer.set_result(line)

    def read() -> None:
        line = _line(sys.stdin.fileno())
        with contextlib.suppress(RuntimeError):  # the program has ended meanwhile
            loop.call_soon_threadsafe(deliver, line)

    # A daemon, and no buffered reader: a question that nobody answers must not keep the program from ending.
    threading.Thread(target=read, daemon=True).start()
    line = await answer
    if not line:
        raise ConfigError("nobody is there to be asked: standard input has ended; --allow says yes beforehand")
    return line.strip().lower() in (b"y", b"yes")


def _line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(descriptor, 1)):
        line += byte
    return line
