"""Every method against a dense float64 reference of a few lines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.aggregation.method import Aggregation, Contribution, GlobalState
from edgefed.aggregation.methods import METHODS
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.errors import AdapterError, ConfigError
from edgefed.lora.low_rank import LowRank

SHAPES = {"encoder.q": (14, 18), "decoder.wo": (20, 14)}
RANK = 6
AVERAGING = ServerOptimizer()
PAIRS = [
    (name, optimizer)
    for name in METHODS
    for optimizer in ("averaging", "momentum", "adam", "adamw")
    if name != "flora" or optimizer == "averaging"  # flora takes no other
]
DEVICES = st.lists(
    st.tuples(st.integers(1, RANK), st.floats(0.1, 50), st.sampled_from([0.0, 1.0])), min_size=1, max_size=5
)


def draw(seed: int, rank: int, size: float = 1.0) -> dict[str, LowRank]:
    rng = np.random.default_rng(seed)
    return {
        module: LowRank(
            (size * rng.standard_normal((m, rank))).astype(np.float32),
            rng.standard_normal((rank, n)).astype(np.float32),
        )
        for module, (m, n) in SHAPES.items()
    }


def contribution(
    device: str, update: dict[str, LowRank], start: dict[str, LowRank], *, weight: float = 1.0, round_: int = 1
) -> Contribution:
    rank = update["encoder.q"].rank
    return Contribution(device, weight, rank, rank, update.__getitem__, start.__getitem__, round_)


def dense(matrix: LowRank) -> np.ndarray:
    return matrix.left.astype(np.float64) @ matrix.right.astype(np.float64)


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def trained(method: Aggregation, devices: Sequence[tuple[int, float, float]], seed: int) -> tuple[GlobalState, list]:
    """A state in the middle of a federation, and what devices of these (rank, weight, size) send for it."""
    state = method.init(SHAPES, RANK, seed)
    if not method.equal_ranks:
        first = [
            contribution("a", draw(seed + 1, 4), state.adapter),
            contribution("b", draw(seed + 2, 2), state.adapter),
        ]
    else:
        first = [contribution("a", draw(seed + 1, RANK), state.adapter)]
    state = method.apply(state, first, rank=RANK, optimizer=AVERAGING, seed=seed)
    sent = []
    for at, (rank, weight, size) in enumerate(devices):
        rank = RANK if method.equal_ranks else rank
        sent.append(contribution(f"d{at}", draw(seed + 3 + at, rank, size), state.adapter, weight=weight, round_=2))
    return state, sent


def weights(sent: Sequence[Contribution]) -> np.ndarray:
    own = np.array([one.weight for one in sent])
    return own / own.sum()


def mean_of_products(sent: Sequence[Contribution], module: str) -> np.ndarray:
    return sum(p * dense(one.update(module)) for p, one in zip(weights(sent), sent, strict=True))


def close(found: LowRank, expected: np.ndarray, sent: Sequence[Contribution], module: str, rank: int = RANK) -> None:
    """The found matrix is as near to the expected one as any of that rank."""
    size = 1 + np.linalg.norm(expected) + max(np.linalg.norm(dense(one.update(module))) for one in sent)
    least = np.linalg.norm(expected - best(expected, rank))
    assert np.linalg.norm(dense(found) - expected) <= least + 2e-5 * size


@settings(max_examples=40, deadline=None)
@given(DEVICES, st.floats(0.1, 1.5), st.integers(0, 10**6))
def test_flexlora(devices, rate, seed):
    state, sent = trained(METHODS["flexlora"], devices, seed)
    optimizer = ServerOptimizer(learning_rate=rate)
    after = METHODS["flexlora"].apply(state, sent, rank=RANK, optimizer=optimizer, seed=seed)
    for module in SHAPES:
        expected = (1 - rate) * dense(state.adapter[module]) + rate * mean_of_products(sent, module)
        close(after.adapter[module], expected, sent, module)
    trainable_in_every_component(after)


@settings(max_examples=40, deadline=None)
@given(DEVICES, st.floats(0.1, 1.5), st.integers(0, 10**6))
def test_delta(devices, rate, seed):
    state, sent = trained(METHODS["delta"], devices, seed)
    late = draw(seed + 99, RANK)  # one device trained on an older global adapter
    sent[0] = replace(sent[0], start=late.__getitem__, round=1)
    optimizer = ServerOptimizer(learning_rate=rate)
    after = METHODS["delta"].apply(state, sent, rank=RANK, optimizer=optimizer, seed=seed)
    for module in SHAPES:
        expected = dense(state.adapter[module])
        for p, one in zip(weights(sent), sent, strict=True):
            expected = expected + rate * p * (
                dense(one.update(module)) - dense(one.start(module).truncated(one.held_rank))
            )
        close(after.adapter[module], expected, sent, module)
    trainable_in_every_component(after)


@settings(max_examples=40, deadline=None)
@given(DEVICES, st.floats(0.1, 1.5), st.integers(0, 10**6))
def test_frozen_global(devices, rate, seed):
    state, sent = trained(METHODS["frozen_global"], devices, seed)
    optimizer = ServerOptimizer(learning_rate=rate)
    after = METHODS["frozen_global"].apply(state, sent, rank=RANK, optimizer=optimizer, seed=seed)
    for module in SHAPES:
        expected = dense(state.adapter[module]) + rate * mean_of_products(sent, module)
        close(after.adapter[module], expected, sent, module)
        assert after.adapter[module].rank <= RANK


@settings(max_examples=40, deadline=None)
@given(DEVICES, st.floats(0.1, 1.5), st.integers(0, 10**6))
def test_flora(devices, rate, seed):
    state, sent = trained(METHODS["flora"], devices, seed)
    optimizer = ServerOptimizer(learning_rate=rate)
    after = METHODS["flora"].apply(state, sent, rank=RANK, optimizer=optimizer, seed=seed)
    total = sum(one.rank for one in sent)
    for module, shape in SHAPES.items():
        before = state.adapter[module]
        expected = dense(before) + rate * mean_of_products(sent, module)
        close(after.adapter[module], expected, sent, module, rank=min(shape))
        if before.rank + total <= min(shape):
            assert after.adapter[module].rank == before.rank + total
            np.testing.assert_array_equal(after.adapter[module].left[:, : before.rank], before.left)
            np.testing.assert_array_equal(after.adapter[module].right[: before.rank], before.right)
        else:
            assert after.adapter[module].rank <= min(shape)


def padded_mean(sent: Sequence[Contribution], own: np.ndarray, module: str, before: LowRank) -> tuple:
    left, right = np.zeros(before.left.shape), np.zeros(before.right.shape)
    reached = np.zeros(RANK, bool)
    for p, one in zip(own / own.sum(), sent, strict=True):
        left[:, : one.rank] += p * one.update(module).left
        right[: one.rank] += p * one.update(module).right
        reached[: one.rank] |= p > 0
    return np.where(reached, left, before.left), np.where(reached[:, None], right, before.right)


@pytest.mark.parametrize("name", ["hetlora", "fedit"])
@settings(max_examples=40, deadline=None)
@given(devices=DEVICES, rate=st.floats(0.1, 1.5), seed=st.integers(0, 10**6))
def test_factor_averaging(name, devices, rate, seed):
    method = METHODS[name]
    state, sent = trained(method, devices, seed)
    after = method.apply(state, sent, rank=RANK, optimizer=ServerOptimizer(learning_rate=rate), seed=seed)
    for module in SHAPES:
        own = weights(sent)
        if name == "hetlora":
            norms = np.array([np.linalg.norm(dense(one.update(module))) for one in sent])
            own = own * norms if norms.any() else own
        before = state.adapter[module]
        for found, old, mean in zip(
            (after.adapter[module].left, after.adapter[module].right),
            (before.left, before.right),
            padded_mean(sent, own, module, before),
            strict=True,
        ):
            np.testing.assert_allclose(found, old + rate * (mean - old), atol=2e-5 * (1 + np.abs(mean).max()))


def trainable_in_every_component(state: GlobalState) -> None:
    for matrix in state.adapter.values():
        assert matrix.rank == RANK
        np.testing.assert_allclose(matrix.right @ matrix.right.T, np.eye(RANK), atol=1e-5)


@pytest.mark.parametrize(("name", "optimizer"), PAIRS)
def test_the_order_of_arrival_changes_no_bit(name, optimizer):
    method = METHODS[name]
    state, sent = trained(method, [(2, 1.0, 1.0), (4, 0.3, 1.0), (1, 7.1, 1.0), (6, 2.2, 1.0)], seed=3)
    # a late update of a device that is in the round as well
    sent.append(replace(sent[1], round=1, update=draw(50, sent[1].rank).__getitem__))
    results = []
    for order in itertools.islice(itertools.permutations(sent), 0, 120, 17):
        after = state
        for round_ in (1, 2):
            after = method.apply(after, order, rank=RANK, optimizer=ServerOptimizer(optimizer), seed=round_)
        results.append(after)
    for other in results[1:]:
        for module in SHAPES:
            np.testing.assert_array_equal(results[0].adapter[module].left, other.adapter[module].left)
            np.testing.assert_array_equal(results[0].adapter[module].right, other.adapter[module].right)
        for slot, array in results[0].optimizer.items():
            np.testing.assert_array_equal(array, other.optimizer[slot])


@pytest.mark.parametrize("name", METHODS)
def test_the_state_before_round_1_changes_nothing_and_fits_how_devices_start(name):
    method = METHODS[name]
    state = method.init(SHAPES, RANK, seed=1)
    assert state.round == 0
    assert {module: matrix.shape for module, matrix in state.adapter.items()} == SHAPES
    for matrix in state.adapter.values():
        assert not matrix.dense().any()
        assert matrix.rank == (RANK if method.start == "truncated" else 0)
    if method.start == "truncated":
        trainable_in_every_component(state)


@pytest.mark.parametrize("name", METHODS)
def test_updates_without_size_leave_nothing_behind_and_the_adapter_trainable(name):
    method = METHODS[name]
    state = method.init(SHAPES, RANK, seed=1)
    sent = [contribution(device, draw(at, RANK, 0.0), state.adapter) for at, device in enumerate("ab")]
    after = method.apply(state, sent, rank=RANK, optimizer=AVERAGING, seed=2)
    assert after.round == 1
    for matrix in after.adapter.values():
        assert not matrix.dense().any()
        assert np.isfinite(matrix.right).all()
        if method.start == "truncated":
            assert np.linalg.norm(matrix.right, axis=1).min() > 0.5


@pytest.mark.parametrize("name", METHODS)
def test_the_state_given_is_left_as_it_is(name):
    method = METHODS[name]
    state, sent = trained(method, [(2, 1.0, 1.0), (4, 2.0, 1.0)], seed=3)
    copies = {module: (matrix.left.copy(), matrix.right.copy()) for module, matrix in state.adapter.items()}
    updates = [one.update("encoder.q").left.copy() for one in sent]
    method.apply(state, sent, rank=RANK, optimizer=AVERAGING, seed=0)
    for module, (left, right) in copies.items():
        np.testing.assert_array_equal(state.adapter[module].left, left)
        np.testing.assert_array_equal(state.adapter[module].right, right)
    for one, left in zip(sent, updates, strict=True):
        np.testing.assert_array_equal(one.update("encoder.q").left, left)


def test_delta_with_equal_ranks_is_flexlora():
    state, sent = trained(METHODS["flexlora"], [(RANK, 1.0, 1.0), (RANK, 2.0, 1.0)], seed=5)
    one = METHODS["flexlora"].apply(state, sent, rank=RANK, optimizer=AVERAGING, seed=0)
    other = METHODS["delta"].apply(state, sent, rank=RANK, optimizer=AVERAGING, seed=0)
    for module in SHAPES:
        np.testing.assert_allclose(one.adapter[module].dense(), other.adapter[module].dense(), atol=1e-4)


def test_delta_keeps_what_a_low_rank_device_cannot_hold_and_flexlora_does_not():
    state, _ = trained(METHODS["delta"], [(1, 1.0, 1.0)], seed=5)
    unchanged = {module: matrix.truncated(1) for module, matrix in state.adapter.items()}
    sent = [contribution("small", unchanged, state.adapter)]
    kept = METHODS["delta"].apply(state, sent, rank=RANK, optimizer=AVERAGING, seed=0)
    lost = METHODS["flexlora"].apply(state, sent, rank=RANK, optimizer=AVERAGING, seed=0)
    for module in SHAPES:
        np.testing.assert_allclose(kept.adapter[module].dense(), state.adapter[module].dense(), atol=1e-4)
        np.testing.assert_allclose(lost.adapter[module].dense(), unchanged[module].dense(), atol=1e-4)


def test_hetlora_keeps_components_that_nobody_trained():
    state, sent = trained(METHODS["hetlora"], [(2, 1.0, 1.0)], seed=5)
    after = METHODS["hetlora"].apply(state, sent, rank=RANK, optimizer=AVERAGING, seed=0)
    for module in SHAPES:
        np.testing.assert_array_equal(after.adapter[module].right[2:], state.adapter[module].right[2:])


def test_flora_grows_until_the_matrix_is_full_and_stays_exact():
    method = METHODS["flora"]
    state = method.init(SHAPES, RANK, 0)
    total = {module: np.zeros(shape) for module, shape in SHAPES.items()}
    for round_ in range(8):
        updates = [draw(100 * round_ + at, 2) for at in range(2)]
        sent = [contribution(f"d{at}", update, state.adapter) for at, update in enumerate(updates)]
        state = method.apply(state, sent, rank=RANK, optimizer=AVERAGING, seed=0)
        for module in SHAPES:
            total[module] += sum(dense(update[module]) for update in updates) / 2
            assert state.adapter[module].rank == min(4 * (round_ + 1), *SHAPES[module])
            np.testing.assert_allclose(dense(state.adapter[module]), total[module], atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_rounds_that_cannot_be_merged_are_refused(name):
    method = METHODS[name]
    state, sent = trained(method, [(4, 1.0, 1.0), (4, 2.0, 1.0)], seed=3)
    wrong_shape = {"encoder.q": draw(0, sent[0].rank)["decoder.wo"], "decoder.wo": draw(0, sent[0].rank)["encoder.q"]}
    cases = [
        ([], "without contributions"),
        ([replace(sent[0], weight=0.0)], "'d0' has weight 0.0"),
        ([replace(sent[0], weight=float("nan"))], "'d0' has weight nan"),
        ([replace(sent[0], weight=float("inf"))], "'d0' has weight inf"),
        ([sent[0], sent[0]], "'d0' contributes twice for round 2"),
        ([replace(sent[0], update=draw(0, 5).__getitem__)], "'d0', module 'decoder.wo': rank 5"),
        ([replace(sent[0], update=wrong_shape.__getitem__)], "'d0', module 'decoder.wo': rank"),
    ]
    for contributions, words in cases:
        with pytest.raises(AdapterError, match=words):
            method.apply(state, contributions, rank=RANK, optimizer=AVERAGING, seed=0)


def test_what_a_single_method_refuses():
    state, sent = trained(METHODS["fedit"], [(1, 1.0, 1.0)], seed=3)
    low = contribution("low", draw(0, 2), state.adapter)
    high = contribution("high", draw(0, RANK + 1), state.adapter)
    with pytest.raises(AdapterError, match="device 'low' trained rank 2, and all must train the server's 6"):
        METHODS["fedit"].apply(state, [*sent, low], rank=RANK, optimizer=AVERAGING, seed=0)
    with pytest.raises(AdapterError, match="'high' trained rank 7, over the server's 6"):
        METHODS["hetlora"].apply(state, [*sent, high], rank=RANK, optimizer=AVERAGING, seed=0)
    with pytest.raises(AdapterError, match="cannot be averaged at rank 8"):
        METHODS["hetlora"].apply(state, sent, rank=8, optimizer=AVERAGING, seed=0)
    swapped = {"encoder.q": draw(0, 2)["decoder.wo"], "decoder.wo": draw(0, 2)["encoder.q"]}
    with pytest.raises(AdapterError, match=r"'low', module 'decoder.wo': its start has shape"):
        METHODS["delta"].apply(state, [replace(low, start=swapped.__getitem__)], rank=RANK, optimizer=AVERAGING, seed=0)
    empty = METHODS["flora"].init(SHAPES, RANK, 0)
    with pytest.raises(ConfigError, match="averaging only, not adam"):
        METHODS["flora"].apply(empty, [low], rank=RANK, optimizer=ServerOptimizer("adam"), seed=0)
