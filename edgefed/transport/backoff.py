"""How long to wait before trying again: exponential, capped, jittered, and slow to forget."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """Delays for a thing that is tried again and again.

    The n-th delay is drawn from the upper half of ``first_s · 2ⁿ``, capped at ``max_s``: jitter, so that a
    fleet does not come back all at once after its broker restarts. A success that lasted ``stable_s`` starts over
    at ``first_s``, and a shorter one shortens the next delay to a quarter of what it lasted: a link that breaks
    every 20 s still carries something most of the time. One that lasted at least ``first_s`` is worth the second
    delay, and a connection that is granted and torn down at once (two clients with one id, a broker that hates a
    message) does not become a tight loop.
    """

    def __init__(
        self,
        first_s: float = 0.5,
        max_s: float = 60.0,
        *,
        stable_s: float = 30.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = min(first_s, max_s)
        self._max_s = max_s
        self._stable_s = stable_s
        self._draw = draw
        self._failures = 0

    def succeeded(self, lasted_s: float) -> None:
        """Take note of a success that lasted so long before it ended."""
        bearable_s = lasted_s / 4
        if lasted_s >= self._stable_s:
            self._failures = 0
        elif bearable_s >= self._first_s:
            self._failures = min(self._failures, int(math.log2(bearable_s / self._first_s)))
        elif lasted_s >= self._first_s:
            self._failures = min(self._failures, 1)

    def next_delay_s(self, at_least_s: float = 0.0) -> float:
        """Return the seconds to wait now; the next call returns more.

        Args:
            at_least_s: A floor, itself capped at ``max_s``, for failures that deserve patience from the start.
        """
        # 2.0**1000 overflows after years of retries; 2**32 times first_s is above any cap.
        ceiling_s = min(self._max_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return max(min(at_least_s, self._max_s), ceiling_s * (0.5 + 0.5 * self._draw()))
