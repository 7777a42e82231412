"""Private merges against a dense float64 reference, and what one device can do to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.aggregation.client_privacy import _noise
from edgefed.aggregation.method import Contribution, GlobalState
from edgefed.aggregation.methods import METHODS
from edgefed.aggregation.options import ClientPrivacy, ServerOptimizer
from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank

SHAPES = {"q": (14, 18), "wo": (20, 14)}
FULL = 14
SILENT = ClientPrivacy(noise_multiplier=1e-7, clip_norm=3.0)
PRIVATE = [name for name, method in METHODS.items() if method.apply_private is not None]


def draw(seed: int, rank: int, size: float = 1.0) -> dict[str, LowRank]:
    rng = np.random.default_rng(seed)
    return {
        module: LowRank(
            (size * rng.standard_normal((m, rank))).astype(np.float32),
            rng.standard_normal((rank, n)).astype(np.float32),
        )
        for module, (m, n) in SHAPES.items()
    }


def before(name: str) -> GlobalState:
    method = METHODS[name]
    first = contribution("x", draw(99, 4, 0.5), method.init(SHAPES, FULL, 0).adapter, held_rank=0)
    return method.apply(method.init(SHAPES, FULL, 0), [first], rank=FULL, optimizer=ServerOptimizer(), seed=1)


def contribution(
    device: str, update: dict[str, LowRank], start: dict[str, LowRank], held_rank: int = 3, weight: float = 1.0
) -> Contribution:
    return Contribution(device, weight, update["q"].rank, held_rank, update.__getitem__, start.__getitem__, 2)


def change(name: str, one: Contribution, module: str) -> np.ndarray:
    moved = one.update(module).dense().astype(np.float64)
    held = one.start(module).truncated(one.held_rank).dense().astype(np.float64)
    return moved - held if name == "delta" else moved


def merged(name: str, state: GlobalState, sent: list[Contribution], privacy: ClientPrivacy) -> dict[str, np.ndarray]:
    apply = METHODS[name].apply_private
    assert apply is not None
    after = apply(state, sent, rank=FULL, optimizer=ServerOptimizer(), seed=2, privacy=privacy)
    assert after.round == state.round + 1
    return {module: matrix.dense().astype(np.float64) for module, matrix in after.adapter.items()}


def test_the_default_and_the_frozen_method_have_a_private_merge() -> None:
    assert set(PRIVATE) == {"delta", "frozen_global"}


@pytest.mark.parametrize("name", PRIVATE)
@settings(max_examples=20)
@given(sizes=st.lists(st.sampled_from([0.0, 0.01, 1.0, 30.0]), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_it_adds_the_mean_of_changes_clipped_over_all_matrices_whatever_their_weights(
    name: str, sizes: list[float], seed: int
) -> None:
    state = before(name)
    sent = [
        contribution(f"d{at}", draw(seed + at, 1 + at, size), state.adapter, weight=1.0 + 7 * at)
        for at, size in enumerate(sizes)
    ]
    found = merged(name, state, sent, SILENT)
    for module in SHAPES:
        expected = state.adapter[module].dense().astype(np.float64)
        for one in sent:
            norm = math.sqrt(sum(float(np.sum(change(name, one, other) ** 2)) for other in SHAPES))
            factor = min(1.0, SILENT.clip_norm / norm) if norm else 1.0
            expected = expected + factor * change(name, one, module) / len(sent)
        np.testing.assert_allclose(found[module], expected, atol=2e-4)


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("size", [0.5, 1e4, 1e12])
def test_no_device_moves_the_global_adapter_by_more_than_its_share_of_the_norm(name: str, size: float) -> None:
    state = before(name)
    others = [contribution(f"d{at}", draw(at, 2), state.adapter) for at in range(3)]
    held = {module: matrix.truncated(3) for module, matrix in state.adapter.items()}
    still = {module: LowRank.zero(shape) for module, shape in SHAPES.items()} if name == "frozen_global" else held
    with_it = merged(name, state, [*others, contribution("z", draw(50, 4, size), state.adapter)], SILENT)
    nothing = {m: x if x.rank else LowRank(np.zeros((SHAPES[m][0], 1), "f4"), np.zeros((1, SHAPES[m][1]), "f4"))
               for m, x in still.items()}  # fmt: skip
    without = merged(name, state, [*others, contribution("z", nothing, state.adapter)], SILENT)
    moved = math.sqrt(sum(float(np.sum((with_it[m] - without[m]) ** 2)) for m in SHAPES))
    assert moved <= SILENT.clip_norm / 4 * (1 + 1e-3)


@pytest.mark.parametrize("optimizer", ["averaging", "momentum", "adam"])
@pytest.mark.parametrize("name", PRIVATE)
def test_noise_is_fresh_each_time_and_has_its_deviation(name: str, optimizer: str) -> None:
    state = before(name)
    sent = [contribution(f"d{at}", draw(at, 2), state.adapter) for at in range(4)]
    privacy = ClientPrivacy(noise_multiplier=2.0, clip_norm=3.0)
    one, other = (
        METHODS[name].apply_private(  # type: ignore[misc]
            state,
            sent,
            rank=FULL,
            optimizer=ServerOptimizer(optimizer),
            seed=2,
            privacy=privacy,  # type: ignore[arg-type]
        )
        for _ in range(2)
    )
    differences = np.concatenate([(one.adapter[m].dense() - other.adapter[m].dense()).ravel() for m in SHAPES])
    assert differences.any()
    if optimizer == "averaging":  # nothing is cut at full rank: what differs is two draws
        assert (differences != 0).all()
        assert float(differences.std()) == pytest.approx(2.0 * 3.0 / 4 * math.sqrt(2), rel=0.15)


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (64, 64)])
def test_a_matrix_of_noise_is_full_and_of_its_deviation(shape: tuple[int, int]) -> None:
    term = _noise(shape, 0.25)
    matrix = term.load().dense()
    assert matrix.shape == term.shape == shape
    assert float(matrix.std()) == pytest.approx(0.25, rel=0.06)
    assert np.linalg.matrix_rank(matrix) == min(shape) == term.rank


def test_a_device_counts_once_even_with_updates_of_two_rounds() -> None:
    state = before("delta")
    first = contribution("a", draw(1, 2), state.adapter)
    late = Contribution("a", 1.0, 2, 3, first.update, first.start, 1)
    with pytest.raises(AdapterError, match="'a' contributes twice to one private sum"):
        merged("delta", state, [first, late], SILENT)
