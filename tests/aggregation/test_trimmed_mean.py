from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.aggregation.method import Contribution, GlobalState
from edgefed.aggregation.methods import METHODS
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.aggregation.trimmed_mean import trimmed_mean
from edgefed.errors import AdapterError, ConfigError
from edgefed.lora.low_rank import LowRank

SHAPES = {"encoder.q": (14, 18), "decoder.wo": (20, 140)}  # the second is wider than a slice of a dense matrix
RANK = 6
VALUES = st.floats(-1e6, 1e6, width=32)


@given(st.integers(1, 3), st.integers(1, 5), st.data())
def test_the_result_stays_among_honest_values_whatever_others_send(trim, more, data):
    honest = np.array(data.draw(st.lists(VALUES, min_size=trim + more, max_size=trim + more)), np.float32)
    wild = st.floats(allow_nan=False, allow_infinity=False, width=32)
    hostile = np.array(data.draw(st.lists(wild, min_size=trim, max_size=trim)), np.float32)
    weights = np.array(data.draw(st.lists(st.floats(1e-6, 1e15), min_size=2 * trim + more, max_size=2 * trim + more)))
    found = trimmed_mean(np.concatenate([hostile, honest])[:, None], weights, trim)
    assert honest.min() <= found[0] <= honest.max()


@given(st.lists(VALUES, min_size=3, max_size=9), st.integers(0, 1))
def test_with_equal_weights_it_is_the_published_one(values, trim):
    array = np.array(values, np.float32)
    expected = np.sort(array.astype(np.float64))[trim : len(values) - trim].mean()
    found = trimmed_mean(array[:, None], np.ones(len(values)), trim)[0]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_what_is_left_keeps_its_weights():
    values = np.array([[5.0], [1.0], [-100.0], [3.0], [100.0]], np.float32)
    found = trimmed_mean(values, np.array([1.0, 2.0, 50.0, 1.0, 50.0]), 1)
    assert found[0] == pytest.approx((5 * 1 + 1 * 2 + 3 * 1) / 4)


def test_too_few_updates_are_refused():
    with pytest.raises(AdapterError, match="4 updates are too few for leaving out 2 on each side"):
        trimmed_mean(np.zeros((4, 3), np.float32), np.ones(4), 2)


def draw(seed: int, rank: int, size: float = 1.0) -> dict[str, LowRank]:
    rng = np.random.default_rng(seed)
    return {
        module: LowRank(
            (size * rng.standard_normal((m, rank))).astype("f4"), rng.standard_normal((rank, n)).astype("f4")
        )
        for module, (m, n) in SHAPES.items()
    }


def sent(name: str, state: GlobalState, seed: int, *, hostile: int = 0) -> list[Contribution]:
    """Five honest devices of different ranks and weights where the method takes them, and some hostile ones."""
    start = draw(seed, RANK)
    contributions = []
    for at in range(5 + hostile):
        rank = RANK if METHODS[name].equal_ranks else 1 + at % RANK
        update = draw(seed + 1 + at, rank, size=1e4 if at >= 5 else 1.0)
        weight = 1e6 if at >= 5 else 1.0 + at
        contributions.append(Contribution(f"d{at}", weight, rank, rank, update.__getitem__, start.__getitem__, 1))
    return contributions


def summed(name: str, one: Contribution, module: str) -> np.ndarray:
    update = one.update(module).dense()
    return update - one.start(module).truncated(one.held_rank).dense() if name == "delta" else update


@pytest.mark.parametrize("name", ["flexlora", "delta", "frozen_global"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_products_are_trimmed_entry_by_entry(name, seed):
    method = METHODS[name]
    state = method.init(SHAPES, 20, seed)
    contributions = sent(name, state, seed, hostile=2)
    after = method.apply(state, contributions, rank=20, optimizer=ServerOptimizer(), seed=seed, trim=2)
    weights = np.array([one.weight for one in contributions])
    for module in SHAPES:
        values = np.stack([summed(name, one, module) for one in contributions])
        expected = trimmed_mean(values, weights, 2)
        honest = values[:5]
        assert (expected >= honest.min(axis=0)).all()
        assert (expected <= honest.max(axis=0)).all()
        u, s, vt = np.linalg.svd(expected, full_matrices=False)  # 20 directions are all of it, up to 18 and 20
        best = (u[:, :20] * s[:20]) @ vt[:20]
        np.testing.assert_allclose(after.adapter[module].dense(), best, atol=1e-3)


def test_factors_of_one_rank_are_trimmed_entry_by_entry():
    method = METHODS["fedit"]
    state = method.init(SHAPES, RANK, 0)
    contributions = sent("fedit", state, 3, hostile=2)
    after = method.apply(state, contributions, rank=RANK, optimizer=ServerOptimizer(), seed=0, trim=2)
    weights = np.array([one.weight for one in contributions])
    for module in SHAPES:
        for side in ("left", "right"):
            values = np.stack([getattr(one.update(module), side) for one in contributions])
            found = getattr(after.adapter[module], side)
            np.testing.assert_allclose(found, trimmed_mean(values, weights, 2), atol=1e-5)
            assert np.abs(found).max() < 10  # the hostile ones are ten thousand times that


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adamw"])
def test_every_server_optimizer_steps_along_it(optimizer):
    method, steps = METHODS["frozen_global"], {}
    for hostile in (0, 1):
        state = method.init(SHAPES, RANK, 0)
        contributions = sent("frozen_global", state, 3, hostile=hostile)
        after = method.apply(state, contributions, rank=RANK, optimizer=ServerOptimizer(optimizer), seed=0, trim=1)
        steps[hostile] = max(np.abs(matrix.dense()).max() for matrix in after.adapter.values())
    assert 0 < steps[1] < 2 * steps[0]


def test_the_rows_of_a_large_matrix_are_taken_some_at_a_time(monkeypatch):
    method = METHODS["flexlora"]
    state = method.init(SHAPES, RANK, 0)
    contributions = sent("flexlora", state, 5)
    results = []
    for block_bytes in (64 << 20, 1):
        monkeypatch.setattr("edgefed.aggregation.trimmed_mean._BLOCK_BYTES", block_bytes)
        after = method.apply(state, contributions, rank=RANK, optimizer=ServerOptimizer(), seed=0, trim=1)
        results.append(after.adapter["decoder.wo"].dense())
    np.testing.assert_allclose(results[0], results[1], atol=1e-4)


@pytest.mark.parametrize("name", ["hetlora", "flora"])
def test_methods_that_cannot_take_it_say_why(name):
    state = METHODS[name].init(SHAPES, RANK, 0)
    with pytest.raises(ConfigError, match=r"padding would be trimmed|a trimmed mean is no stack"):
        METHODS[name].apply(state, sent(name, state, 0), rank=RANK, optimizer=ServerOptimizer(), seed=0, trim=1)
