from __future__ import annotations

import numpy as np
import pytest

from edgefed.errors import AdapterError
from edgefed.lora.adapters import adapter_rank, check_adapter, initial_adapter, levelled, truncated
from edgefed.lora.low_rank import LowRank

SHAPES = {"encoder.q": (24, 32), "encoder.v": (24, 32), "decoder.wo": (32, 48)}


def test_an_initial_adapter_changes_nothing_and_can_learn_in_every_component():
    adapter = initial_adapter(SHAPES, 8, seed=1)
    assert list(adapter) == sorted(SHAPES)
    for module, matrix in adapter.items():
        assert (matrix.shape, matrix.rank) == (SHAPES[module], 8)
        assert not matrix.left.any()
        np.testing.assert_allclose(matrix.right @ matrix.right.T, np.eye(8), atol=1e-5)
    # modules of one shape start differently, and so do seeds; the same seed starts equally
    assert not np.array_equal(adapter["encoder.q"].right, adapter["encoder.v"].right)
    assert not np.array_equal(adapter["encoder.q"].right, initial_adapter(SHAPES, 8, seed=2)["encoder.q"].right)
    np.testing.assert_array_equal(
        adapter["decoder.wo"].right, initial_adapter(dict(reversed(SHAPES.items())), 8, seed=1)["decoder.wo"].right
    )


def test_levelling_changes_no_matrix():
    adapter = initial_adapter(SHAPES, 30, seed=1)  # more than the smaller side of two modules
    adapter |= {"encoder.q": LowRank(np.ones((24, 2), np.float32), np.ones((2, 32), np.float32))}
    level = levelled(adapter)
    assert {matrix.rank for matrix in level.values()} == {adapter_rank(adapter)}
    for module, matrix in adapter.items():
        np.testing.assert_array_equal(level[module].left @ level[module].right, matrix.left @ matrix.right)
    assert levelled({}) == {}


def test_truncation_takes_the_first_components_of_every_module():
    adapter = initial_adapter(SHAPES, 8, seed=1)
    cut = truncated(adapter, 3)
    assert adapter_rank(cut) == 3
    np.testing.assert_array_equal(cut["encoder.q"].right, adapter["encoder.q"].right[:3])
    assert adapter_rank(truncated(adapter, 20)) == 8
    assert adapter_rank({}) == 0


def _with(module: str, matrix: LowRank) -> dict[str, LowRank]:
    return {**initial_adapter(SHAPES, 4, seed=0), module: matrix}


def _not_finite() -> LowRank:
    right = np.ones((4, 32), np.float32)
    right[2, 3] = np.nan
    return LowRank(np.ones((24, 4), np.float32), right)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (_with("encoder.k", LowRank.zero((24, 32))), "'encoder.k' is not one of the federation's 3"),
        ({"encoder.q": LowRank.zero((24, 32))}, r"'decoder.wo' is missing \(2 of 3 are\)"),
        (initial_adapter(SHAPES, 9, seed=0), "rank 9; at most 8"),
        (_with("encoder.q", LowRank.zero((24, 31)).completed(4, 0)), r"'encoder.q' has shape \(24, 31\); \(24, 32\)"),
        (_with("encoder.q", LowRank.zero((24, 32)).completed(3, 0)), "'encoder.q' has rank 3 where another has 4"),
        (_with("encoder.v", _not_finite()), r"'encoder.v': 1 of 128 entries of right \(A\) are NaN"),
    ],
)
def test_an_adapter_that_may_not_enter_a_sum_is_refused_with_module_found_and_allowed(adapter, words):
    with pytest.raises(AdapterError, match=words):
        check_adapter(adapter, SHAPES, max_rank=8)


def test_a_fitting_adapter_passes():
    check_adapter(initial_adapter(SHAPES, 8, seed=0), SHAPES, max_rank=8)
