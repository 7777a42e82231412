"""Commands that run until somebody stops them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

import typer

__all__ = ["run_stoppable", "until_stopped"]

_T = TypeVar("_T")


async def until_stopped() -> None:
    """Waits for SIGINT (Ctrl-C) or SIGTERM, which do nothing else meanwhile."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def run_stoppable(work: Coroutine[Any, Any, _T]) -> _T:
    """Runs `work` to its end. SIGINT and SIGTERM cancel it, so that it can say goodbye; a second one ends the process.

    Returns:
        What `work` returns.

    Raises:
        KeyboardInterrupt: it was stopped by SIGINT.
        typer.Exit: it was stopped by SIGTERM, which is how a service is stopped in good order: exit code 0.
    """
    received: list[signal.Signals] = []

    async def main() -> _T | None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)

        def stop(number: signal.Signals) -> None:
            if received:
                os._exit(128 + number)
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        except asyncio.CancelledError:
            if received:
                return None
            raise

    result = asyncio.run(main())
    if received:
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise typer.Exit(0)
    return cast("_T", result)
