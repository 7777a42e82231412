from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.data.source import DataSource, hold_back


@given(count=st.integers(0, 200), share=st.floats(0, 1), seed=st.integers())
def test_hold_back_splits_in_order_and_leaves_something_on_both_sides(count: int, share: float, seed: int) -> None:
    examples = [f"example {number}" for number in range(count)]
    kept, held = hold_back(examples, share, seed=seed)
    assert sorted(kept + held) == sorted(examples)
    assert [example for example in examples if example in set(kept)] == kept
    assert [example for example in examples if example in set(held)] == held
    if count >= 2:
        assert held
        assert kept
    else:
        assert not held
    assert abs(len(held) - count * share) <= 1 or len(held) in (1, count - 1)


def test_the_same_examples_and_seed_give_the_same_split() -> None:
    examples = list(range(100))
    assert hold_back(examples, 0.2, seed=1) == hold_back(examples, 0.2, seed=1)
    assert hold_back(examples, 0.2, seed=1) != hold_back(examples, 0.2, seed=2)
    assert len(hold_back(examples, 0.2, seed=1)[1]) == 20


def test_a_source_without_a_path_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.path"):
        msgspec.convert({"path": ""}, DataSource)
