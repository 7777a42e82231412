"""Programs that run until somebody stops them: SIGINT and SIGTERM as an orderly end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar, cast

__all__ = ["Stopped", "heeded_interrupts", "run_stoppable"]

_T = TypeVar("_T")


class Stopped(Exception):
    """The program was stopped by a signal, and has said goodbye.

    Attributes:
        exit_code: 130 after Ctrl-C; 0 after SIGTERM, which is how a service is stopped in good order.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.exit_code = 130 if number == signal.SIGINT else 0


@contextmanager
def heeded_interrupts() -> Iterator[Callable[[], None]]:
    """For long work by libraries: Ctrl-C interrupts it as ever, and is not lost where a library catches everything.

    Yields:
        What raises KeyboardInterrupt if there was one, for the work to call now and then.
    """
    interrupted = threading.Event()
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        if callable(handler):
            handler(number, frame)

    def heed() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    if not callable(handler):  # whoever started this program wants it not to be interrupted
        yield heed
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield heed
    finally:
        signal.signal(signal.SIGINT, handler)


def run_stoppable(work: Coroutine[Any, Any, _T]) -> _T:
    """Runs `work` to its end. SIGINT and SIGTERM cancel it, so that it can say goodbye; a second one ends the process.

    Returns:
        What `work` returns.

    Raises:
        Stopped: a signal ended it.
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
        raise Stopped(received[0])
    return cast("_T", result)
