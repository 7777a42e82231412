"""Numbers as people read them: three digits, decimal units, UTC."""

from __future__ import annotations

import datetime
import math
import re

from edgefed.reports.utilization import Figure

__all__ = [
    "figure_text",
    "number",
    "percent",
    "quantity",
    "seconds",
    "signed_percent",
    "tick",
    "tick_seconds",
    "utc",
    "utc_time",
]

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def number(value: float) -> str:
    """Returns three significant digits without an exponent: 0.0123, 1.23, 123, 12,300."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    rounded = float(f"{value:.3g}")
    decimals = max(0, min(9, 2 - math.floor(math.log10(abs(rounded)) + 1e-9)))
    return f"{rounded:,.{decimals}f}"


def quantity(value: float, unit: str) -> str:
    """Returns a quantity with a decimal prefix: 1.23 MB, 45.6 GFLOP/s; below 1 without one."""
    step = 0
    while abs(value) >= 999.5 and step < len(_PREFIXES) - 1:
        value /= 1000
        step += 1
    return f"{number(value)} {_PREFIXES[step]}{unit}".rstrip()


def percent(share: float) -> str:
    """Returns a share as a percentage: 12.3 %."""
    return f"{number(share * 100)} %"


def signed_percent(change: float) -> str:
    """Returns a relative change: +4.2 %, −0.8 %, 0 %; as a factor from ten times on."""
    if change >= 9:
        return f"×{number(change + 1)}"
    text = percent(abs(change))
    return text if change == 0 else f"{'+' if change > 0 else '−'}{text}"


def seconds(value: float) -> str:
    """Returns a duration: 12.3 ms, 4.56 s, 3 min 20 s, 2 h 05 min."""
    if not math.isfinite(value):
        return f"{value} s"
    if value < 1:
        return f"{number(value * 1000)} ms" if value else "0 s"
    if value < 119.5:
        return f"{number(value)} s"
    if value < 7170:
        whole = round(value)
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def tick_seconds(value: float) -> str:
    """Returns a round duration, short: 0, 0.5 s, 30 s, 2 min, 1:30 min, 3 h."""
    if value < 60:
        return f"{value:g} s" if value else "0"
    if value < 3600:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes}:{rest:02} min" if rest else f"{minutes} min"
    return f"{value / 3600:g} h"


def tick(text: str) -> str:
    """Returns a number in words without the zeros that say how exact it is: an axis is not a measurement."""
    return re.sub(r"(\.\d*?)0+(?!\d)", r"\1", text).replace(". ", " ").rstrip(".")


def utc(unix_s: float) -> str:
    """Returns a moment to the minute: 2026-11-21 04:12 UTC."""
    return f"{_moment(unix_s):%Y-%m-%d %H:%M} UTC"


def utc_time(unix_s: float) -> str:
    """Returns the time of day to the second: 04:12:09."""
    return f"{_moment(unix_s):%H:%M:%S}"


def figure_text(figure: Figure, unit: str) -> str:
    """Returns a figure in its unit (`B`, `s`, `%`, `count`, `FLOP/s` …); a dash where it is not known."""
    if figure.value is None:
        return "–"
    special = {"s": seconds, "%": percent, "": number, "count": _count}
    if unit in special:
        return special[unit](figure.value)
    if unit in ("W", "°C"):
        return f"{number(figure.value)} {unit}"
    return quantity(figure.value, unit)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 10_000 else quantity(value, "")


def _moment(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(max(0.0, min(unix_s, 253402300799.0)), datetime.timezone.utc)
