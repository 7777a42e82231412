from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgefed.data.examples import Example
from edgefed.errors import WorkerError
from edgefed.lora.low_rank import LowRank
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.adapters import AdaptedModel, install
from edgefed.training.base_model import LoadedModel
from edgefed.training.loop import train
from edgefed.training.options import LoraOptions, TrainOptions
from edgefed.training.round_work import Suspend
from edgefed.training.steps import StepRecord
from edgefed.training.suspension import Suspended, Suspension, read_suspension, write_suspension

Shapes = dict[str, tuple[int, int]]
OPTIONS = TrainOptions(steps=5, batch_size=3, warmup_steps=2, schedule="linear", seed=11)


def stop_after(steps: int) -> Callable[[StepRecord], None]:
    def on_step(record: StepRecord) -> None:
        if record.step + 1 == steps:
            raise Suspend

    return on_step


@pytest.fixture
def trained(
    base: LoadedModel, shapes: Shapes, examples: list[Example], task: SummarizationTask
) -> Callable[..., dict[str, LowRank]]:
    """Trains from a seed of factors; suspends, goes through a file and goes on in a new model where told to."""

    def run(path: Path, stops: tuple[int, ...], options: TrainOptions = OPTIONS) -> dict[str, LowRank]:
        model: AdaptedModel | None = None
        for seed, stop in enumerate((*stops, 0)):
            model = install(base, list(shapes), LoraOptions(rank=4, dropout=0.2), seed=seed)
            resume = read_suspension(path, "key")
            assert (resume is None) == (seed == 0)
            try:
                result = train(model, examples, task, options, stop_after(stop), resume=resume)
            except Suspended as suspended:
                assert stop
                assert len(suspended.suspension.steps) == stop  # noqa: PT017 - it is not known whether it stops
                write_suspension(path, "key", suspended.suspension)
                model.remove()
        assert model is not None
        assert result.steps == options.steps
        assert result.examples == options.steps * options.batch_size
        factors = model.get_factors()
        model.remove()
        return factors

    return run


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stops", [(1,), (4,), (1, 2, 4)])
def test_a_suspended_training_ends_in_the_same_bits(
    trained: Callable[..., dict[str, LowRank]], tmp_path: Path, stops: tuple[int, ...], optimizer: str
) -> None:
    options = TrainOptions(steps=5, batch_size=3, warmup_steps=2, optimizer=optimizer, seed=11)  # type: ignore[arg-type]
    whole = trained(tmp_path / "whole", (), options)
    pieces = trained(tmp_path / "pieces", stops, options)
    for module, factors in whole.items():
        np.testing.assert_array_equal(pieces[module].left, factors.left)
        np.testing.assert_array_equal(pieces[module].right, factors.right)


def test_a_request_to_stop_after_the_last_step_changes_nothing(
    base: LoadedModel, shapes: Shapes, examples: list[Example], task: SummarizationTask
) -> None:
    model = install(base, list(shapes), LoraOptions(rank=2), seed=0)
    try:
        assert train(model, examples, task, OPTIONS, stop_after(OPTIONS.steps)).steps == OPTIONS.steps
    finally:
        model.remove()


@pytest.fixture
def suspension() -> Suspension:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return Suspension.of([weight], optimizer, [])


def test_another_key_is_another_training(tmp_path: Path, suspension: Suspension) -> None:
    path = tmp_path / "suspended"
    write_suspension(path, "round 3", suspension)
    assert read_suspension(path, "round 4") is None
    found = read_suspension(path, "round 3")
    assert found is not None
    assert torch.equal(found.weights[0], suspension.weights[0])
    assert [item.name for item in tmp_path.iterdir()] == ["suspended"]


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, suspension: Suspension, damage: bytes | None) -> None:
    path = tmp_path / "suspended"
    write_suspension(path, "key", suspension)
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert read_suspension(path, "key") is None


def test_weights_of_another_rank_are_refused(suspension: Suspension) -> None:
    other = torch.nn.Parameter(torch.zeros(2, 4))
    with pytest.raises(WorkerError, match="another model or rank"):
        suspension.restore([other], torch.optim.AdamW([other]))
