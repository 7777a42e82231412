from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.coordinator.selection import Selection


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"participants": 2, "quorum": 3}, r"quorum \(3\) is larger than participants \(2\)"),
        ({"expected_devices": 2, "quorum": 3}, r"quorum \(3\) is larger than expected_devices \(2\)"),
    ],
)
def test_a_quorum_that_no_round_could_reach_is_refused(fields: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Selection(**fields)
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(fields, Selection)


@pytest.mark.parametrize(
    "fields",
    [
        {"participants": -1},
        {"quorum": 0},
        {"over_selection": 0.9},
        {"over_selection": 11},
        {"gather_s": 0},
        {"deadline_s": 0},
        {"late": "sometimes"},
        {"late_exponent": -0.1},
        {"max_staleness": 0},
    ],
)
def test_values_out_of_range_are_refused_by_name(fields: dict[str, object]) -> None:
    (name,) = fields
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{name}"):
        msgspec.convert(fields, Selection)


def test_the_quorum_may_be_everybody() -> None:
    assert Selection(participants=3, quorum=3, expected_devices=3).quorum == 3


def test_a_late_update_weighs_less_by_the_published_discount() -> None:
    assert Selection(late_exponent=0.5).late_weight(100, 3) == 50.0
    assert Selection(late_exponent=1.0).late_weight(100, 3) == 25.0


@given(examples=st.integers(1, 10**9), staleness=st.integers(0, 100), exponent=st.floats(0, 10))
def test_weights_fall_with_staleness_and_never_vanish(examples: int, staleness: int, exponent: float) -> None:
    selection = Selection(late_exponent=exponent)
    assert selection.late_weight(examples, 0) == examples
    assert 0 < selection.late_weight(examples, staleness + 1) <= selection.late_weight(examples, staleness) <= examples
