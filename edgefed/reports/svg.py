"""Charts as small inline SVG that follow the page.

Across they are in percent, so that they fit a phone and a sheet of paper without shrinking their text; down in pixels.
Colours are classes, which the style sheet sets for light and dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["Part", "axis", "bar", "line_plot", "nice_ticks", "time_ticks", "timeline"]

_BAR_PX = 14
_AXIS_PX = 18
_PLOT_PX = 200
_MARGIN_PX = 10
_NO_SPAN = 1e-9  # a device may send any number: what is so small is drawn as nothing


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar.

    Attributes:
        kind: its class in the style sheet.
        begin: where it begins, in the chart's unit.
        length: its length in that unit.
        title: what is shown when pointed at.
    """

    kind: str
    begin: float
    length: float
    title: str


def bar(parts: Sequence[Part], full: float, *, label: str) -> Markup:
    """Returns a horizontal bar whose whole width stands for `full`; parts lie where they begin."""
    return _svg(_BAR_PX, label, [_rect(part, full) for part in parts])


def timeline(parts: Sequence[Part], full: float, marks: Sequence[float], *, label: str) -> Markup:
    """Returns a bar with vertical marks, such as the ends of rounds."""
    lines = [_line(mark / full, 0, mark / full, _BAR_PX, "mark") for mark in marks]
    return _svg(_BAR_PX, label, [*lines, *(_rect(part, full) for part in parts)])


def axis(ticks: Sequence[tuple[float, str]], full: float) -> Markup:
    """Returns tick labels for the bars above: (position, text), in the same unit."""
    items: list[Markup] = []
    for at, text in ticks:
        anchor = "start" if at <= 0.04 * full else "end" if at >= 0.96 * full else "middle"
        items.append(_line(at / full, 0, at / full, 4, "tick"))
        items.append(_text(_across(at / full), 15, text, anchor))
    return _svg(_AXIS_PX, "", items)


def line_plot(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, label: str, x_ticks: Sequence[float], unit: str = ""
) -> tuple[Markup, Markup, Markup]:
    """Returns y axis, plot and x axis of lines through points.

    Args:
        series: class of a line, and its (x, y) points in order; a single point is drawn as a dot.
        label: for those who cannot see it.
        x_ticks: where the x axis has numbers, ascending.
        unit: behind the numbers of the y axis.
    """
    points = [point for _, line in series for point in line]
    low, high = (min(y for _, y in points), max(y for _, y in points)) if points else (0.0, 1.0)
    ticks = nice_ticks(min(low, high - 1e-9), high)
    bottom, top = ticks[0], max(ticks[-1], high)
    first, last = (x_ticks[0], x_ticks[-1]) if x_ticks else (0.0, 1.0)
    width = (last - first) or 1.0

    def down(y: float) -> float:
        return _MARGIN_PX + (top - y) / (top - bottom) * (_PLOT_PX - 2 * _MARGIN_PX)

    def across(x: float) -> float:
        return 0.02 + 0.96 * (x - first) / width if last > first else 0.5

    grid = [_line(0, down(tick), 1, down(tick), "grid") for tick in ticks]
    drawn = [
        _line(across(a[0]), down(a[1]), across(b[0]), down(b[1]), f"line {kind}")
        for kind, line in series
        for a, b in itertools.pairwise(line)
    ]
    dots = [
        Markup('<circle cx="{}" cy="{}" r="3" class="dot {}"><title>{}</title></circle>').format(
            _across(across(x)), _px(down(y)), kind, f"{x:g}: {y:.4g}{unit}"
        )
        for kind, line in series
        for x, y in line
    ]
    names = [_text("100%", down(tick) + 4, f"{tick:g}{unit}", "end") for tick in ticks]
    rounds = [_text(_across(across(tick)), 14, f"{tick:g}", "middle") for tick in x_ticks]
    return _svg(_PLOT_PX, "", names), _svg(_PLOT_PX, label, [*grid, *drawn, *dots]), _svg(_AXIS_PX, "", rounds)


def nice_ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Returns round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`."""
    span = high - low
    if span <= _NO_SPAN or not math.isfinite(span):
        return [low, low + 1.0]
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * about >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, last + 1)]


def time_ticks(longest_s: float, *, about: int = 6) -> list[float]:
    """Returns round times from 0 to at or above `longest_s`: whole minutes or hours where there are any."""
    for step_s in _TIME_STEPS_S:
        if 1 < longest_s <= step_s * about:
            return [step_s * index for index in range(math.ceil(longest_s / step_s - 1e-9) + 1)]
    return nice_ticks(0.0, longest_s, about=about)


_TIME_STEPS_S = (
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    15.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
    3600.0,
    7200.0,
    21600.0,
    86400.0,
)


def _svg(height_px: int, label: str, items: Sequence[Markup]) -> Markup:
    role = Markup('role="img" aria-label="{}"').format(label) if label else Markup('aria-hidden="true"')
    return Markup('<svg width="100%" height="{}" {}>{}</svg>').format(height_px, role, Markup("").join(items))


def _rect(part: Part, full: float) -> Markup:
    begin, length = part.begin / full, part.length / full
    return Markup('<rect x="{}" y="0" width="{}" height="{}" class="{}"><title>{}</title></rect>').format(
        _across(begin), _across(length), _BAR_PX, part.kind, part.title
    )


def _line(x1: float, y1_px: float, x2: float, y2_px: float, kind: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(
        _across(x1), _px(y1_px), _across(x2), _px(y2_px), kind
    )


def _text(x: str, y_px: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(x, _px(y_px), anchor, text)


def _across(share: float) -> str:
    return f"{min(1.0, max(0.0, share)) * 100:.3f}%"


def _px(value: float) -> str:
    return f"{value:.1f}"
