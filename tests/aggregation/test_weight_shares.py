from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.aggregation.weight_shares import bounded_shares

WEIGHTS = st.lists(st.floats(1e-6, 1e16), min_size=1, max_size=12).map(
    lambda values: {f"d{at}": value for at, value in enumerate(values)}
)


@given(WEIGHTS, st.floats(0.01, 1.0))
def test_no_share_is_over_the_bound_and_all_add_up_to_one(weights: dict[str, float], bound: float) -> None:
    shares = bounded_shares(weights, bound)
    assert set(shares) == set(weights)
    assert sum(shares.values()) == pytest.approx(1.0, rel=1e-9)
    assert max(shares.values()) <= max(bound, 1 / len(weights)) * (1 + 1e-9)


@given(WEIGHTS, st.floats(0.01, 1.0))
def test_a_larger_weight_never_has_a_smaller_share(weights: dict[str, float], bound: float) -> None:
    shares = bounded_shares(weights, bound)
    ordered = [shares[device] for device in sorted(weights, key=lambda device: weights[device])]
    assert all(one <= other * (1 + 1e-9) for one, other in pairwise(ordered))


@given(WEIGHTS)
def test_a_bound_of_one_changes_nothing(weights: dict[str, float]) -> None:
    total = sum(weights.values())
    expected = {device: weight / total for device, weight in weights.items()}
    assert bounded_shares(weights, 1.0) == pytest.approx(expected, rel=1e-9)


def test_who_is_below_the_bound_keeps_the_proportions() -> None:
    shares = bounded_shares({"liar": 1e9, "one": 10.0, "other": 30.0}, 0.5)
    assert shares == pytest.approx({"liar": 0.5, "one": 0.125, "other": 0.375})


def test_what_one_gives_up_may_put_another_over_the_bound() -> None:
    shares = bounded_shares({"a": 60.0, "b": 30.0, "c": 5.0, "d": 5.0}, 0.4)
    assert shares == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.1, "d": 0.1})
