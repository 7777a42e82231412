from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.precision import decode, encode, with_residual

BOUNDS = {"fp32": 0.0, "fp16": 2.0**-11, "int8": 0.5 / 127}


def draw(seed: int, shape: tuple[int, int], rank: int, size: float = 1.0) -> LowRank:
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((shape[0], rank)) * size
    return LowRank(left.astype(np.float32), rng.standard_normal((rank, shape[1])).astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["fp32", "fp16", "int8"]),
    st.lists(st.integers(-30, 30), max_size=5),
    st.integers(0, 12),
    st.integers(0, 2**32 - 1),
)
def test_an_entry_is_off_by_at_most_its_share_of_the_components_largest(precision, exponents, size, seed):
    values = np.random.default_rng(seed).standard_normal((len(exponents), size)) * 10.0 ** np.array(
        exponents, dtype=float
    ).reshape(-1, 1)
    values = values.astype(np.float32)
    stored, scales = encode(values, precision)
    found = decode(stored, scales)
    assert found.dtype == np.float32
    largest = np.abs(values).max(axis=1, initial=0.0, keepdims=True)
    assert np.all(np.abs(found - values) <= BOUNDS[precision] * largest * 1.001)


def test_extreme_components_survive_every_precision():
    tiny, huge = np.finfo(np.float32).smallest_subnormal, 3e38
    values = np.array([[0, 0], [huge, -huge], [1e-35, 0], [1e-5, 3e-5]], np.float32)
    for precision in ("fp16", "int8"):
        stored, scales = encode(values, precision)
        found = decode(stored, scales)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, values, rtol=0.02, atol=1e-40)
    assert np.isfinite(decode(*encode(np.array([[tiny]], np.float32), "int8"))).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 25), st.integers(2, 25), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_what_lies_in_the_tangent_space_goes_out_at_once(m, n, rank, more, seed):
    rank = min(rank, m, n)
    matrix = draw(seed, (m, n), rank).compressed()
    rng = np.random.default_rng(seed + 1)
    # small changes of B with A held, and of A with B held
    changes = LowRank.stack(
        [
            LowRank((1e-3 * rng.standard_normal((m, rank))).astype(np.float32), matrix.right),
            LowRank(matrix.left, (1e-3 * rng.standard_normal((rank, n))).astype(np.float32)),
        ]
    )
    moved = with_residual(matrix, changes)
    assert moved.rank == matrix.rank
    wanted = matrix.dense() + changes.dense()
    before = np.linalg.norm(matrix.dense() - wanted)
    conditioning = np.linalg.norm(matrix.left) / max(np.linalg.norm(matrix.left, axis=0).min(), 1e-9)
    assert np.linalg.norm(moved.dense() - wanted) <= before * max(0.05, 0.02 * conditioning)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 25), st.integers(2, 25), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_no_residual_makes_a_message_worse(m, n, rank, owed_rank, seed):
    matrix = draw(seed, (m, n), rank)
    owed = draw(seed + 1, (m, n), owed_rank, 0.01)
    moved = with_residual(matrix, owed)
    wanted = matrix.dense() + owed.dense()
    slack = 1e-4 * np.linalg.norm(wanted)
    assert np.linalg.norm(moved.dense() - wanted) <= np.linalg.norm(owed.dense()) + slack


def test_a_residual_of_another_matrix_is_refused():
    with pytest.raises(AdapterError, match="does not belong"):
        with_residual(draw(0, (4, 5), 2), draw(0, (5, 4), 2))


def test_factors_without_size_take_no_residual():
    zero = LowRank(np.zeros((6, 2), np.float32), np.zeros((2, 5), np.float32))
    moved = with_residual(zero, draw(0, (6, 5), 2))
    assert not moved.left.any()
    assert not moved.right.any()
