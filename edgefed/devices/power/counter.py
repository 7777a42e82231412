"""An energy counter that only grows, made from one that begins again."""

from __future__ import annotations

__all__ = ["GrowingCounter"]


class GrowingCounter:
    """Follows a counter through its wrapping round.

    A reading below the one before has wrapped once: the counter must be read more often than it can go round (a RAPL
    counter of 262 kJ takes 44 minutes at 100 W). Without a known range it has begun again at zero, as after a reset.

    Args:
        range_: what it counts to before it begins again; None where that is not known.
    """

    def __init__(self, range_: int | None = None) -> None:
        self._range = range_
        self._last: int | None = None
        self._total = 0

    def read(self, raw: int) -> int:
        """Takes a reading; returns the total, which begins at the first reading."""
        if self._last is None:
            self._total = raw
        elif raw >= self._last:
            self._total += raw - self._last
        else:
            self._total += raw + (self._range - self._last if self._range is not None else 0)
        self._last = raw
        return self._total
