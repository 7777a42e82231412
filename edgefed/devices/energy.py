"""Joules of a window, from what a power sensor said at moments of it. Pure: no clock, no sensor.

Two ways, and the better is taken: a counter of energy, whose difference is exact however seldom it is read; or readings
of power, joined by straight lines (trapezoid rule). A gap in the readings is not bridged, since nobody knows what the
power was; it lowers the share that was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeGuard

from edgefed.devices.usage import Energy, EnergyMethod, EnergyScope

__all__ = ["GAP_PERIODS", "MIN_WINDOW_S", "EnergyMeter"]

MIN_WINDOW_S = 2.0
"""Shorter windows tell nothing: sensors average over up to a second, or look part of the time (arXiv 2312.02741)."""

GAP_PERIODS = 3.0
"""Readings further apart than so many sample periods are not joined."""

_WHOLE = 0.99  # a share above this is the whole window: the ends are never hit exactly


class EnergyMeter:
    """One window's energy.

    Args:
        began_s: when the window began.
        period_s: how often power is meant to be read.
        method_integrated: how joules from readings of power are named.
        method_counted: how joules from a counter are named.
        scope: what the sensor sees.
        coverage: what the sensor does and does not see, in words.
    """

    def __init__(
        self,
        *,
        began_s: float,
        period_s: float,
        method_integrated: EnergyMethod | None,
        method_counted: EnergyMethod | None,
        scope: EnergyScope,
        coverage: str,
    ) -> None:
        self._began_s = began_s
        self._method_integrated = method_integrated
        self._method_counted = method_counted
        self._scope = scope
        self._coverage = coverage
        self._integral = _Integral(gap_s=GAP_PERIODS * period_s)
        self._count = _Count()

    def read(self, now_s: float, *, watts: float | None, joules: float | None) -> None:
        """Takes what the sensor says at a moment, each later than the one before.

        Args:
            now_s: of the same clock as `began_s`.
            watts: power; None where the sensor did not answer or has none.
            joules: of the counter; None likewise. One that has fallen was reset, and starts anew.
        """
        if self._method_integrated is not None and _is_figure(watts):
            self._integral.add(now_s, watts)
        if self._method_counted is not None and _is_figure(joules):
            self._count.add(now_s, joules)

    def energy(self, now_s: float) -> Energy:
        """Returns the energy of the window up to now; null with a reason where it is not known."""
        window_s = now_s - self._began_s
        if window_s < MIN_WINDOW_S:
            return self._unknown(f"window too short: {window_s:.1f} s, and a figure needs {MIN_WINDOW_S:g} s")
        found = self._better()
        if found.measured_s < MIN_WINDOW_S:
            return self._unknown(self._why_too_little(found.measured_s, window_s))
        if not found.joules:
            return self._unknown("the sensor shows no power at all, which no machine that runs takes")
        share = min(1.0, found.measured_s / window_s)
        method = self._method_counted if found is self._count else self._method_integrated
        missing_s = window_s - found.measured_s
        return Energy(
            joules=found.joules,
            mean_w=found.joules / found.measured_s,
            method=method or "none",
            scope=self._scope,
            coverage=self._coverage,
            measured_share=share,
            reason="" if share >= _WHOLE else f"the sensor gave nothing for {missing_s:.1f} s of {window_s:.1f} s",
        )

    def _better(self) -> _Sum:
        """Returns what covers more of the window, the counter where both do; one that only ever said 0 is broken."""
        count, integral = self._count, self._integral
        if not count.joules or not integral.joules:
            return count if count.joules >= integral.joules else integral
        return count if count.measured_s >= integral.measured_s else integral

    def _why_too_little(self, measured_s: float, window_s: float) -> str:
        if not (self._integral.answered or self._count.answered):
            return "the power sensor never answered"
        return (
            f"only {measured_s:.1f} s of {window_s:.1f} s lie between readings of the power sensor, "
            f"and a figure needs {MIN_WINDOW_S:g} s"
        )

    def _unknown(self, reason: str) -> Energy:
        return Energy(scope=self._scope, coverage=self._coverage, reason=reason)


@dataclass(slots=True)
class _Sum:
    """Energy so far, and the seconds that it was used in."""

    joules: float = 0.0
    measured_s: float = 0.0
    _last: tuple[float, float] | None = field(default=None, init=False)

    @property
    def answered(self) -> bool:
        return self._last is not None

    def _after_last(self, now_s: float, reading: float) -> tuple[float, float]:
        """Returns the seconds since the reading before this, and that one; 0 s and this one where it is the first."""
        before_s, before = self._last or (now_s, reading)
        self._last = (now_s, reading)
        return now_s - before_s, before


@dataclass(slots=True)
class _Integral(_Sum):
    """Power over time by the trapezoid rule."""

    gap_s: float = field(kw_only=True)

    def add(self, now_s: float, watts: float) -> None:
        since_s, before_w = self._after_last(now_s, watts)
        if 0 < since_s <= self.gap_s:
            self.joules += (watts + before_w) / 2 * since_s
            self.measured_s += since_s


@dataclass(slots=True)
class _Count(_Sum):
    """Differences of a counter."""

    def add(self, now_s: float, joules: float) -> None:
        since_s, before_j = self._after_last(now_s, joules)
        if since_s > 0 and joules >= before_j:
            self.joules += joules - before_j
            self.measured_s += since_s


def _is_figure(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and value >= 0
