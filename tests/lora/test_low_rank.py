from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank

SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, shape: tuple[int, int], rank: int, size: float = 1.0) -> LowRank:
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((shape[0], rank)) * size
    return LowRank(left.astype(np.float32), rng.standard_normal((rank, shape[1])).astype(np.float32))


def dense64(matrix: LowRank) -> np.ndarray:
    return matrix.left.astype(np.float64) @ matrix.right.astype(np.float64)


def sizes_of_components(matrix: LowRank) -> float:
    return float(np.sum(np.linalg.norm(matrix.left, axis=0) * np.linalg.norm(matrix.right, axis=1)))


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, st.integers(0, 50), st.none() | st.integers(1, 50), st.integers(-6, 6), SEEDS)
@example(5, 5, 5, 2, 0, 0)  # as many components as the matrix has rows: the dense decomposition
@example(40, 40, 1, 1, 0, 0)
@example(1, 1, 1, None, 6, 0)
def test_the_compressed_form_is_the_best_approximation_and_canonical(m, n, k, rank, exponent, seed):
    matrix = draw(seed, (m, n), k, 10.0**exponent)
    exact = dense64(matrix)
    found = matrix.compressed(rank)

    sigma = np.linalg.svd(exact, compute_uv=False)
    kept = min(m, n) if rank is None else min(rank, m, n)
    best_error = np.sqrt(np.sum(sigma[kept:] ** 2))
    size = sizes_of_components(matrix)  # components may cancel; rounding is relative to them
    assert found.rank <= kept
    assert np.linalg.norm(dense64(found) - exact) <= best_error + 2e-6 * size
    np.testing.assert_allclose(found.right @ found.right.T, np.eye(found.rank), atol=1e-5)
    overlaps = found.left.T.astype(np.float64) @ found.left
    np.testing.assert_allclose(overlaps, np.diag(np.diag(overlaps)), atol=2e-6 * size**2 + 1e-300)
    lengths = np.sqrt(np.diag(overlaps))
    assert np.all(np.diff(lengths) <= 1e-5 * size)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(1, 20), st.floats(0.0, 1.0), SEEDS)
def test_a_tolerance_keeps_the_fewest_directions_that_meet_it(m, n, k, tolerance, seed):
    matrix = draw(seed, (m, n), k)
    exact = dense64(matrix)
    found = matrix.compressed(tolerance=tolerance)
    size = np.linalg.norm(exact)
    rounding = 2e-6 * sizes_of_components(matrix)
    assert np.linalg.norm(dense64(found) - exact) <= tolerance * size + rounding
    sigma = np.linalg.svd(exact, compute_uv=False)
    if found.rank:
        assert np.sqrt(np.sum(sigma[found.rank - 1 :] ** 2)) > tolerance * size - 5 * rounding


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.lists(st.integers(0, 12), min_size=1, max_size=5), st.floats(-100, 100), SEEDS)
def test_arithmetic_is_that_of_the_dense_matrices(m, n, ranks, factor, seed):
    terms = [draw(seed + at, (m, n), rank) for at, rank in enumerate(ranks)]
    exact = [dense64(term) for term in terms]
    total = LowRank.stack(terms)
    assert total.rank == sum(ranks)
    bound = 1e-5 * (1 + sizes_of_components(total))
    np.testing.assert_allclose(total.dense(), sum(exact), atol=bound)
    np.testing.assert_allclose(dense64(terms[0].scaled(factor)), exact[0] * factor, atol=bound * (1 + abs(factor)))
    np.testing.assert_allclose(total.norm(), np.linalg.norm(sum(exact)), atol=bound)
    np.testing.assert_allclose(total.inner(terms[0]), np.sum(sum(exact) * exact[0]), atol=bound * bound * 1e5)


def test_a_direction_small_on_one_side_and_large_on_the_other_is_not_taken_for_noise():
    left = np.array([[1e9, 0], [0, 1e-9], [0, 0]], np.float32)
    right = np.array([[1e-9, 0], [0, 1e9]], np.float32)
    found = LowRank(left, right).compressed()
    assert found.rank == 2
    np.testing.assert_allclose(dense64(found), [[1, 0], [0, 1], [0, 0]], atol=1e-6)


def test_terms_that_nearly_cancel_keep_what_is_left_of_them():
    start = draw(0, (200, 150), 8)
    change = draw(1, (200, 150), 4, 1e-3)
    trained = LowRank(start.left + 0, start.right)
    found = LowRank.stack([trained, change, start.scaled(-1)]).compressed()
    error = np.linalg.norm(dense64(found) - dense64(change)) / np.linalg.norm(dense64(change))
    assert found.rank == 4
    assert error < 1e-3  # 6e-8 of the terms' own size is what float32 keeps; they are 1000 times larger


def test_dependent_columns_and_zero_matrices_have_the_rank_they_have():
    one = draw(0, (30, 20), 3)
    assert LowRank.stack([one, one, one.scaled(2)]).compressed().rank == 3
    assert LowRank.stack([one, one.scaled(-1)]).compressed().norm() <= 1e-6 * one.norm()
    assert LowRank.zero((30, 20)).compressed(4).rank == 0
    assert LowRank(np.zeros((3, 2), np.float32), np.ones((2, 5), np.float32)).compressed().rank == 0
    assert LowRank(np.zeros((3, 9), np.float32), np.ones((9, 5), np.float32)).compressed().rank == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 4), st.integers(1, 20), SEEDS)
def test_completion_changes_nothing_and_gives_every_component_a_row(m, n, k, rank, seed):
    matrix = draw(seed, (m, n), k).compressed()
    completed = matrix.completed(rank, seed)
    assert completed.rank == max(rank, matrix.rank)
    np.testing.assert_array_equal(dense64(completed.truncated(matrix.rank)), dense64(matrix))
    assert not completed.left[:, matrix.rank :].any()
    orthogonal = completed.right[:n]
    np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(len(orthogonal)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(completed.right, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(completed.right, matrix.completed(rank, seed).right)


def test_slices_are_clipped_and_share_memory():
    matrix = draw(0, (6, 5), 4)
    assert matrix.sliced(2, 9).rank == 2
    assert matrix.sliced(7, 9).rank == 0
    assert np.shares_memory(matrix.truncated(2).left, matrix.left)


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (np.zeros((3, 2), np.float32), np.zeros((3, 4), np.float32), "do not share a rank"),
        (np.zeros((3, 2)), np.zeros((2, 4), np.float32), "float64"),
        (np.zeros(3, np.float32), np.zeros((2, 4), np.float32), r"\(3,\)"),
    ],
)
def test_factors_that_are_no_factors_are_refused(left, right, words):
    with pytest.raises(AdapterError, match=words):
        LowRank(left, right)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    for side in (0, 1):
        factors = [np.ones((4, 2), np.float32), np.ones((2, 5), np.float32)]
        factors[side][1, 1] = bad
        matrix = LowRank(*factors)
        with pytest.raises(AdapterError, match=r"module 'x': 1 of \d+ entries"):
            matrix.check("module 'x'")
        with pytest.raises(AdapterError):
            matrix.compressed()
        with pytest.raises(AdapterError):
            LowRank.stack([matrix] * 4).compressed()


def test_a_product_beyond_float32_is_refused():
    huge = LowRank(np.full((3, 1), 1e30, np.float32), np.full((1, 4), 1e30, np.float32))
    with pytest.raises(AdapterError, match="float32"):
        huge.compressed()


def test_matrices_of_different_shapes_do_not_mix():
    with pytest.raises(AdapterError, match="one shape"):
        LowRank.stack([draw(0, (3, 4), 1), draw(0, (4, 3), 1)])
    with pytest.raises(AdapterError, match="one shape"):
        LowRank.stack([])
    with pytest.raises(AdapterError, match="inner product"):
        draw(0, (3, 4), 1).inner(draw(0, (4, 3), 1))
