"""How many messages of a device are heard: a flood shall cost the aggregator little more than reading it.

What a message asks for may be dear: a join or a goodbye is a journal entry on disk, an offer a look into the store, a
list of missing parts a broadcast.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Hearing", "WordLimit"]

Hearing = Literal["heard", "silenced", "unheard"]

_MINUTE_S = 60.0
_MOST_DEVICES = 4096


@dataclass(slots=True)
class _Account:
    """What a device may still say: `left` messages at `at_s`, more as time passes."""

    left: float
    at_s: float
    silenced_at_s: float = float("-inf")


class WordLimit:
    """A token bucket per device that holds a minute's messages.

    Args:
        per_minute: messages of one device.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def hear(self, device: str) -> Hearing:
        """Counts a message: `heard`, or `silenced` for the first one in a minute that is too many, or `unheard`."""
        now_s = self._clock()
        account = self._account_of(device, now_s)
        account.left = min(self._per_minute, account.left + (now_s - account.at_s) / _MINUTE_S * self._per_minute)
        account.at_s = now_s
        if account.left >= 1:
            account.left -= 1
            return "heard"
        if now_s - account.silenced_at_s < _MINUTE_S:
            return "unheard"
        account.silenced_at_s = now_s
        return "silenced"

    def _account_of(self, device: str, now_s: float) -> _Account:
        known = self._accounts.pop(device, None)
        if known is None:
            if len(self._accounts) >= _MOST_DEVICES:
                del self._accounts[next(iter(self._accounts))]  # the one that was silent for longest
            known = _Account(self._per_minute, now_s)
        self._accounts[device] = known
        return known
