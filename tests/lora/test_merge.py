from __future__ import annotations

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgefed.errors import AdapterError, ConfigError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.merge import Term, choose_path, dense_sum, memory_bytes, weighted_sum

SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, shape: tuple[int, int], rank: int, size: float = 1.0) -> LowRank:
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((shape[0], rank)) * size
    return LowRank(left.astype(np.float32), rng.standard_normal((rank, shape[1])).astype(np.float32))


def reference(terms: list[Term]) -> np.ndarray:
    total = np.zeros(terms[0].shape)
    for term in terms:
        matrix = term.load()
        total += term.weight * (matrix.left.astype(np.float64) @ matrix.right)
    return total


def size_of(terms: list[Term]) -> float:
    return sum(abs(term.weight) * np.linalg.norm(term.load().dense()) for term in terms)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 50), st.floats(-4, 4), st.integers(-3, 3)), min_size=1, max_size=6),
    st.none() | st.integers(1, 50),
    st.sampled_from(["stacked", "dense", "auto"]),
    SEEDS,
)
@example(40, 30, [(1, 1.0, 0)], 1, "auto", 0)  # one device, rank 1
@example(40, 30, [(4, 0.5, 0), (4, 0.5, 0)], 4, "auto", 0)  # equal ranks
@example(8, 6, [(16, 1.0, 0), (32, 1.0, 0)], 16, "auto", 0)  # rank over min(m, n)
@example(8, 6, [(0, 1.0, 0), (3, 0.0, 0)], 2, "auto", 0)  # nothing at all
def test_every_path_gives_the_best_approximation_of_the_dense_sum(m, n, devices, rank, path, seed):
    terms = [
        Term.of(draw(seed + at, (m, n), own, 10.0**exponent), weight)
        for at, (own, weight, exponent) in enumerate(devices)
    ]
    exact = reference(terms)
    found = weighted_sum(terms, rank, path=path, seed=seed)
    kept = min(m, n) if rank is None else rank
    best_error = np.sqrt(np.sum(np.linalg.svd(exact, compute_uv=False)[kept:] ** 2))
    got = found.left.astype(np.float64) @ found.right
    assert np.linalg.norm(got - exact) <= best_error + 5e-6 * size_of(terms) + 1e-37
    if rank is not None:
        assert found.rank == rank
    orthogonal = found.right[:n]
    np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(len(orthogonal)), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(1, 4), SEEDS)
def test_paths_agree_where_the_sum_fits_the_rank(count, rank, seed):
    # all devices share their rows, as after starting from one global adapter
    rows = draw(seed, (30, 25), rank).right
    terms = [Term.of(LowRank(draw(seed + at, (30, 25), rank).left, rows), 0.5 + at) for at in range(count)]
    exact = reference(terms)
    for path in ("stacked", "dense", "streamed"):
        got = weighted_sum(terms, rank, path=path)
        assert got.rank <= rank
        assert np.linalg.norm(got.dense() - exact) <= 1e-5 * size_of(terms)


def test_streaming_loses_no_more_than_the_tails_it_drops():
    rng = np.random.default_rng(0)
    shared = draw(1, (80, 60), 5)
    terms = [
        Term.of(LowRank.stack([shared, draw(2 + at, (80, 60), 3, 0.05)]), float(rng.uniform(0.5, 1)))
        for at in range(20)
    ]
    exact = reference(terms)
    best = np.sqrt(np.sum(np.linalg.svd(exact, compute_uv=False)[5:] ** 2))
    found = weighted_sum(terms, 5, path="streamed", memory_limit_bytes=memory_bytes("streamed", (80, 60), 24, 12))
    assert best < np.linalg.norm(found.dense() - exact) < 1.05 * best


@pytest.mark.parametrize("count", [20, 200])
def test_the_memory_limit_holds_however_many_devices_there_are(count):
    shape, rank, limit_bytes = (300, 240), 8, 900_000
    terms = [Term(1 / count, shape, rank, partial(draw, at, shape, rank)) for at in range(count)]
    assert choose_path(shape, [rank] * count, rank, limit_bytes) == "streamed"
    weighted_sum(terms[:2], rank)  # whatever numpy allocates once
    tracemalloc.start()
    try:
        weighted_sum(terms, rank, memory_limit_bytes=limit_bytes)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < limit_bytes


@pytest.mark.parametrize("path", ["stacked", "dense"])
def test_the_estimate_covers_what_a_path_really_takes(path):
    shape, ranks = (400, 300), [16] * 8
    terms = [Term.of(draw(at, shape, rank), 0.1) for at, rank in enumerate(ranks)]
    weighted_sum(terms, 16, path=path)
    tracemalloc.start()
    try:
        weighted_sum(terms, 16, path=path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    estimate_bytes = memory_bytes(path, shape, sum(ranks), 16)
    assert peak_bytes < estimate_bytes < 3 * peak_bytes


def test_the_path_follows_the_sizes():
    assert choose_path((2048, 2048), [4, 4, 8, 8, 16, 16, 32, 32, 64, 64], 64) == "stacked"
    assert choose_path((2048, 2048), [8] * 400, 64) == "dense"
    assert choose_path((64, 4096), [8] * 8, 8) == "dense"
    assert choose_path((2048, 2048), [8] * 400, 64, 10_000_000) == "streamed"
    assert choose_path((8, 8), [], 4) == "stacked"


def test_a_limit_that_no_path_fits_is_refused_with_what_is_needed():
    terms = [Term.of(draw(at, (300, 200), 8)) for at in range(40)]
    with pytest.raises(ConfigError, match=r"rank 8 .* needs (\d+) bytes .* limit is 1000") as refusal:
        weighted_sum(terms, 8, memory_limit_bytes=1000)
    needed = int(str(refusal.value).split(" needs ")[1].split()[0])
    assert weighted_sum(terms, 8, memory_limit_bytes=needed).rank == 8


def test_the_same_terms_give_the_same_bits_and_are_loaded_once_each():
    loaded: list[int] = []

    def load(at: int) -> LowRank:
        loaded.append(at)
        return draw(at, (50, 40), 4)

    for path in ("stacked", "dense", "streamed"):
        terms = [Term(0.1 * (at + 1), (50, 40), 4, partial(load, at)) for at in range(6)]
        loaded.clear()
        one = weighted_sum(terms, 30, path=path, seed=5)
        assert loaded == list(range(6))
        other = weighted_sum(terms, 30, path=path, seed=5)
        np.testing.assert_array_equal(one.left, other.left)
        np.testing.assert_array_equal(one.right, other.right)


def test_a_dense_sum_is_the_sum():
    terms = [Term.of(draw(at, (33, 21), 70), 0.5 - at) for at in range(4)]
    np.testing.assert_allclose(dense_sum(terms, (33, 21)), reference(terms), atol=1e-4)
    np.testing.assert_array_equal(dense_sum([], (3, 2)), np.zeros((3, 2)))


def test_terms_that_are_not_what_they_say_are_refused():
    matrix = draw(0, (5, 4), 2)
    with pytest.raises(AdapterError, match="announced as rank 3"):
        weighted_sum([Term(1.0, (5, 4), 3, lambda: matrix)], 2)
    with pytest.raises(AdapterError, match="one shape"):
        weighted_sum([Term.of(matrix), Term.of(draw(0, (4, 5), 2))], 2)
    with pytest.raises(AdapterError, match="one shape"):
        weighted_sum([], 2)
