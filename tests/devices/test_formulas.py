"""Formulas of sheets: arithmetic and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.devices.formulas import evaluate

numbers = st.floats(min_value=1e-3, max_value=1e12)


@given(numbers, numbers, numbers)
def test_formulas_are_arithmetic(a: float, b: float, c: float) -> None:
    values = {"a": a, "b": b, "c": c}
    assert evaluate("a * b / c", values) == a * b / c
    assert evaluate("(a + b) * 2 - c", values) == (a + b) * 2 - c


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("sm_count * ", "is no formula of numbers"),
        ("sm_count * clock", "uses clock, which this file does not give"),
        ("__import__('os')", "is not allowed"),
        ("sm_count ** 9999", "is not allowed"),
        ("sm_count / (sm_count - 8)", "divides by zero"),
        ("'8'", "is not allowed"),
        ("True", "is not allowed"),
        ("-sm_count", "is not allowed"),
    ],
)
def test_anything_else_is_refused(formula: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate(formula, {"sm_count": 8.0})
