from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.reports.utilization import Figure
from edgefed.reports.wording import figure_text, number, quantity, seconds, signed_percent, tick, tick_seconds, utc


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (number(0), "0"),
        (number(0.012345), "0.0123"),
        (number(9.999), "10.0"),
        (number(12345), "12,300"),
        (quantity(999.7, "J"), "1.00 kJ"),
        (quantity(1_536_000, "B"), "1.54 MB"),
        (quantity(0, "B"), "0 B"),
        (seconds(0.0123), "12.3 ms"),
        (seconds(119.6), "2 min 00 s"),
        (seconds(7500), "2 h 05 min"),
        (signed_percent(0.05), "+5.00 %"),
        (signed_percent(-0.5), "−50.0 %"),
        (signed_percent(0), "0 %"),
        (signed_percent(11), "×12.0"),
        (tick("2.00 GB"), "2 GB"),
        (tick("1,000"), "1,000"),
        (tick("0.0500"), "0.05"),
        (tick_seconds(90), "1:30 min"),
        (utc(1_795_235_763), "2026-11-21 04:36 UTC"),
        (figure_text(Figure(None, "why"), "B"), "–"),
        (figure_text(Figure(0.25), "%"), "25.0 %"),
        (figure_text(Figure(3), "count"), "3"),
    ],
)
def test_as_people_read_it(text: str, wanted: str) -> None:
    assert text == wanted


@given(st.floats(1e-6, 1e15))
def test_three_digits_are_kept(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.0051)
