from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.reports.svg import Part, axis, bar, line_plot, nice_ticks, time_ticks, timeline


@given(st.floats(-1e12, 1e12), st.floats(1e-3, 1e12))
def test_ticks_enclose_what_is_drawn_evenly(low: float, span: float) -> None:
    high = low + span
    if not high - low > abs(low) * 1e-6:
        return  # closer together than a label could tell
    ticks = nice_ticks(low, high)
    slack = (high - low) * 1e-6
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 12
    steps = [after - before for before, after in pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps))


@given(st.floats(0, 1e8))
def test_times_begin_at_0_and_reach_the_end(longest_s: float) -> None:
    ticks = time_ticks(longest_s)
    assert ticks[0] == 0
    assert ticks[-1] >= longest_s * (1 - 1e-6)
    assert ticks[-1] > 0
    assert 2 <= len(ticks) <= 16


def test_times_are_whole_minutes_where_there_are_any() -> None:
    assert time_ticks(267) == [0, 60, 120, 180, 240, 300]
    assert time_ticks(48.6) == [0, 10, 20, 30, 40, 50]


def test_drawings_are_well_formed_and_escaped() -> None:
    hostile = '"><script>&'
    drawn = [
        bar([Part("data", 0, 1, hostile)], 2, label=hostile),
        timeline([Part("train", 0, 1, hostile)], 2, [1, 2], label=hostile),
        axis([(0, hostile), (2, "2")], 2),
        *line_plot([("evaluated", [(0, 2.0), (1, 1.0)]), ("trained", [])], label=hostile, x_ticks=[0, 1]),
        *line_plot([("evaluated", [(0, 2.0)])], label="a single point", x_ticks=[0]),
    ]
    for one in drawn:
        tree = ElementTree.fromstring(one)
        assert tree.tag == "svg"
        assert "script" not in {element.tag for element in tree.iter()}


def test_a_bar_is_as_long_as_its_share() -> None:
    tree = ElementTree.fromstring(bar([Part("data", 1, 2, ""), Part("idle", 3, 9, "")], 8, label="x"))
    places = [(rect.get("x"), rect.get("width")) for rect in tree.iter("rect")]
    assert places == [("12.500%", "25.000%"), ("37.500%", "100.000%")]
