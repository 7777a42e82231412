from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgefed.aggregation.method import Contribution, GlobalState, load_state, save_state
from edgefed.aggregation.methods import METHODS
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank

PAIRS = [
    (name, optimizer)
    for name in METHODS
    for optimizer in ("averaging", "momentum", "adam", "adamw")
    if name != "flora" or optimizer == "averaging"  # flora takes no other
]

SHAPES = {"encoder.block.0.layer.0.SelfAttention.q": (14, 18), "decoder.wo": (20, 14)}


def draw(seed: int, rank: int) -> dict[str, LowRank]:
    rng = np.random.default_rng(seed)
    return {
        module: LowRank(
            rng.standard_normal((m, rank)).astype(np.float32), rng.standard_normal((rank, n)).astype(np.float32)
        )
        for module, (m, n) in SHAPES.items()
    }


def same(one: GlobalState, other: GlobalState) -> bool:
    return (
        one.round == other.round
        and set(one.adapter) == set(other.adapter)
        and set(one.optimizer) == set(other.optimizer)
        and all(np.array_equal(array, other.optimizer[name]) for name, array in one.optimizer.items())
        and all(
            np.array_equal(matrix.left, other.adapter[module].left)
            and np.array_equal(matrix.right, other.adapter[module].right)
            for module, matrix in one.adapter.items()
        )
    )


@pytest.mark.parametrize(("name", "optimizer"), PAIRS)
def test_a_federation_goes_on_from_the_file_as_if_nothing_had_happened(tmp_path, name, optimizer):
    method, server = METHODS[name], ServerOptimizer(optimizer)
    going = method.init(SHAPES, 4, seed=0)
    stored = going
    path = tmp_path / "state.safetensors"
    for round_ in range(3):
        save_state(path, stored)
        stored = load_state(path)
        assert same(stored, going)
        updates = [draw(10 * round_ + at, 4) for at in range(2)]
        going, stored = (
            method.apply(
                state,
                [
                    Contribution(f"d{at}", 1.0 + at, 4, 4, update.__getitem__, state.adapter.__getitem__, round_)
                    for at, update in enumerate(updates)
                ],
                rank=4,
                optimizer=server,
                seed=round_,
            )
            for state in (going, stored)
        )
    assert same(stored, going)
    assert going.round == 3


def test_states_give_the_same_bytes_and_leave_nothing_beside_them(tmp_path):
    state = GlobalState(draw(0, 3), {"decoder.wo:first": np.ones((2, 2), np.float32)}, 5)
    flipped = GlobalState(dict(reversed(state.adapter.items())), dict(state.optimizer), 5)
    save_state(tmp_path / "one", state)
    save_state(tmp_path / "other", flipped)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    save_state(tmp_path / "one", GlobalState(draw(1, 3), {}, 6))
    assert load_state(tmp_path / "one").round == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({}, {"format": "edgefed-lora/1", "round": "1"}, "not a state"),
        ({}, {"format": "edgefed-state/1"}, "not a state"),
        ({}, {"format": "edgefed-state/1", "round": "-1"}, "not a state"),
        ({"adapter/x/left": (3, 2)}, None, "no tensor 'adapter/x/right'"),
        ({"adapter/x/left": (3, 2), "adapter/x/right": (3, 2)}, None, "do not share a rank"),
        ({"adapter/x/up": (3, 2)}, None, "'adapter/x/up' does not belong"),
        ({"x": (3, 2)}, None, "'x' does not belong"),
    ],
)
def test_files_that_are_no_states_are_refused(tmp_path, tensors, metadata, words):
    path = tmp_path / "state"
    arrays = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    save_file(arrays, path, metadata=metadata or {"format": "edgefed-state/1", "round": "1"})
    with pytest.raises(AdapterError, match=words):
        load_state(path)
    with pytest.raises(AdapterError, match="No such file"):
        load_state(tmp_path / "none")


def test_slots_are_a_modules_own():
    state = GlobalState({}, {"a:first": np.zeros(1, np.float32), "ab:first": np.ones(1, np.float32)}, 0)
    assert set(state.slots("a")) == {"first"}
    assert state.slots("a")["first"][0] == 0
    assert state.slots("b") == {}
