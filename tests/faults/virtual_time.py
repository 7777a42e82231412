"""An event loop whose time a test sets and whose threads run at once: the same calls give the same story every time."""

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
    """

    def __init__(self) -> None:
        self.now_s = 1000.0
        super().__init__()

    def time(self) -> float:
        return self.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Runs it here and now, so that no thread decides what comes first."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
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
