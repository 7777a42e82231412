from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.aggregation.changes import check_summable, inner_products, shortened
from edgefed.aggregation.method import Aggregation, Contribution
from edgefed.aggregation.methods import METHODS
from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank

SHAPES = {"encoder.q": (14, 18), "decoder.wo": (20, 14)}
RANK = 6
METHOD = st.sampled_from(sorted(METHODS)).map(METHODS.__getitem__)
RANKS = st.lists(st.integers(1, RANK), min_size=1, max_size=5)
LITTLE_BYTES = 2 * 8 * (20 + 14) * RANK  # so that every device is a block of its own


def draw(seed: int, rank: int) -> dict[str, LowRank]:
    rng = np.random.default_rng(seed)
    return {
        module: LowRank(rng.standard_normal((m, rank)).astype("f4"), rng.standard_normal((rank, n)).astype("f4"))
        for module, (m, n) in SHAPES.items()
    }


def sent(method: Aggregation, ranks: Sequence[int], seed: int) -> list[Contribution]:
    start = draw(seed, RANK)
    return [
        Contribution(
            f"d{at}",
            1.0,
            RANK if method.equal_ranks else rank,
            RANK if method.equal_ranks else rank,
            draw(seed + 1 + at, RANK if method.equal_ranks else rank).__getitem__,
            start.__getitem__,
        )
        for at, rank in enumerate(ranks)
    ]


def vector(method: Aggregation, one: Contribution) -> np.ndarray:
    """What a device changed, as one long vector, by the definition."""
    parts = []
    for module, (m, n) in SHAPES.items():
        update, start = one.update(module), one.start(module).truncated(one.held_rank)
        if method.space == "factors":
            left, right = np.zeros((m, RANK)), np.zeros((RANK, n))
            left[:, : one.rank] = update.left.astype("f8") - start.left
            right[: one.rank] = update.right.astype("f8") - start.right
            parts += [left.ravel(), right.ravel()]
        else:
            change = update.left.astype("f8") @ update.right
            parts.append(
                (change if method.start == "frozen" else change - start.left.astype("f8") @ start.right).ravel()
            )
    return np.concatenate(parts)


@settings(max_examples=60, deadline=None)
@given(METHOD, RANKS, st.integers(0, 10**6), st.sampled_from([None, LITTLE_BYTES]))
def test_inner_products_are_those_of_the_changes(method, ranks, seed, limit_bytes):
    contributions = sent(method, ranks, seed)
    vectors = np.stack([vector(method, one) for one in contributions])
    found = inner_products(method, contributions, SHAPES, memory_limit_bytes=limit_bytes)
    np.testing.assert_allclose(found, vectors @ vectors.T, rtol=1e-5, atol=1e-4)


def test_the_size_of_a_small_change_of_a_large_matrix_is_right():
    start = draw(0, RANK)
    change = {module: LowRank(matrix.left + np.float32(1e-4), matrix.right) for module, matrix in start.items()}
    one = Contribution("d", 1.0, RANK, RANK, change.__getitem__, start.__getitem__)
    expected = float(np.sum(vector(METHODS["delta"], one) ** 2))
    assert inner_products(METHODS["delta"], [one], SHAPES)[0, 0] == pytest.approx(expected, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(METHOD, st.integers(1, RANK), st.integers(0, 10**6), st.floats(0.001, 0.999))
def test_a_shortened_change_has_the_same_direction(method, rank, seed, share):
    (one,) = sent(method, [rank], seed)
    less = shortened(method, one, share)
    whole, part = (float(inner_products(method, [which], SHAPES)[0, 0]) for which in (one, less))
    assert part == pytest.approx(share**2 * whole, rel=1e-3)
    for module in SHAPES:
        assert less.update(module).rank == less.rank
        if method.space == "products":
            start = 0.0 if method.start == "frozen" else one.start(module).truncated(one.held_rank).dense()
            expected = start + share * (one.update(module).dense() - start)
            np.testing.assert_allclose(less.update(module).dense(), expected, rtol=1e-4, atol=1e-4)


def test_one_product_as_huge_factors_is_far_for_methods_that_average_factors():
    start = draw(0, 2)
    hidden = {module: LowRank(one.left * np.float32(1e6), one.right / np.float32(1e6)) for module, one in start.items()}
    attack = Contribution("d", 1.0, 2, 2, hidden.__getitem__, start.__getitem__)
    assert inner_products(METHODS["delta"], [attack], SHAPES)[0, 0] < 1e-6
    assert inner_products(METHODS["hetlora"], [attack], SHAPES)[0, 0] > 1e12


def test_a_start_that_never_was_is_refused():
    start = draw(0, 2)
    one = Contribution("d", 1.0, 2, 5, start.__getitem__, start.__getitem__)
    with pytest.raises(AdapterError, match="says that it held rank 5 of a global adapter that had rank 2"):
        inner_products(METHODS["delta"], [one], SHAPES)


def ones(left: float, right: float) -> LowRank:
    return LowRank(np.full((3, 1), left, "f4"), np.full((1, 4), right, "f4"))


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (ones(1e20, 1e20), "values of this size"),
        (ones(1e38, 1e-30), "values of this size"),
        (LowRank.stack([ones(1e9, 1.0), ones(-1e9, 1.0), ones(1e-3, 1.0)]), "cancel each other"),
    ],
)
def test_finite_values_that_would_break_a_sum_are_refused(matrix: LowRank, words: str):
    with pytest.raises(AdapterError, match=words):
        check_summable(matrix, "module 'q'")


def test_what_devices_really_send_can_be_summed():
    for matrix in (ones(0.0, 1.0), ones(1e-30, 1.0), ones(1e6, 1.0), LowRank.zero((3, 4)), *draw(0, RANK).values()):
        check_summable(matrix, "module 'q'")
