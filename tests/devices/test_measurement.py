from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.devices.measurement import Measurement, absent, measured


@given(value=st.floats(allow_nan=True, allow_infinity=True))
def test_a_figure_is_a_positive_number_or_a_null_with_a_reason(value: float) -> None:
    figure = measured(value, "a stopwatch")
    if math.isfinite(value) and value > 0:
        assert (figure.value, figure.method, figure.reason) == (value, "a stopwatch", "")
    else:
        assert figure.value is None
        assert "a stopwatch gave" in figure.reason
    assert msgspec.json.decode(msgspec.json.encode(figure), type=Measurement) == figure


@pytest.mark.parametrize(
    "wrong", ["{}", '{"value":0}', '{"value":-1}', '{"value":null}', '{"value":0,"reason":"none"}']
)
def test_a_null_without_a_reason_and_a_zero_are_refused(wrong: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"reason|no measurement"):
        msgspec.json.decode(wrong, type=Measurement)


def test_an_absent_figure_says_why() -> None:
    assert absent("no kernel") == Measurement(value=None, reason="no kernel")
