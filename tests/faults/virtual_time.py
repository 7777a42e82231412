"""An event loop whose time a test sets, and whose threads take as long as it says: the same calls, the same story."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["VirtualLoop"]

_MOST_TURNS = 100_000


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that runs while something is ready, and then stands still.

    Attributes:
        now_s: its clock; only `advance` moves it.
        threads_take_s: how long what runs in a thread takes.
    """

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.threads_take_s = 0.0
        super().__init__()

    def time(self) -> float:
        return self.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Does it here and now, and says so when its time is over."""
        future = self.create_future()
        try:
            say, word = future.set_result, func(*args)
        except Exception as error:  # noqa: BLE001 - as an executor does
            say, word = future.set_exception, error
        if self.threads_take_s:
            self.call_later(self.threads_take_s, lambda: future.done() or say(word))
        else:
            say(word)
        return future

    def settle(self) -> None:
        """Runs until nothing is left to do at this moment."""
        asyncio._set_running_loop(self)
        try:
            for _ in range(_MOST_TURNS):
                if not self._ready:  # type: ignore[attr-defined]
                    return
                self._run_once()  # type: ignore[attr-defined]
        finally:
            asyncio._set_running_loop(None)
        raise AssertionError("something keeps the loop busy without time passing")

    def advance(self, seconds: float) -> None:
        """Lets time pass, timer by timer."""
        until_s = self.now_s + seconds
        self.settle()
        while (due_s := self._next_timer_s()) is not None and due_s <= until_s:
            self.now_s = max(self.now_s, due_s)
            self.call_soon(lambda: None)  # a turn moves what is due to what is ready
            self.settle()
        self.now_s = until_s

    def _next_timer_s(self) -> float | None:
        return min((timer.when() for timer in self._scheduled if not timer.cancelled()), default=None)  # type: ignore[attr-defined]
