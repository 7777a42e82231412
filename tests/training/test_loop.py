from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgefed.data.examples import Example
from edgefed.errors import DataError, WorkerError, WorkerOutOfMemory
from edgefed.lora.low_rank import LowRank
from edgefed.models.checkpoint import linear_shapes
from edgefed.models.finding import resolve_model
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.adapters import install
from edgefed.training.base_model import LoadedModel, load_base
from edgefed.training.evaluate import validation_loss
from edgefed.training.loop import _batches, train
from edgefed.training.options import LoraOptions, TrainOptions
from edgefed.training.steps import StepRecord

pytestmark = pytest.mark.torch
Shapes = dict[str, tuple[int, int]]


def factors_after(
    base: LoadedModel,
    shapes: Shapes,
    examples: list[Example],
    task: SummarizationTask,
    options: TrainOptions,
    dropout: float = 0.0,
) -> dict[str, LowRank]:
    model = install(base, list(shapes), LoraOptions(rank=4, dropout=dropout), seed=0)
    train(model, examples, task, options)
    factors = model.get_factors()
    model.remove()
    return factors


def test_loss_falls_and_every_step_is_recorded(
    base: LoadedModel, shapes: Shapes, examples: list[Example], task: SummarizationTask
) -> None:
    records: list[StepRecord] = []
    model = install(base, list(shapes), LoraOptions(rank=8), seed=0)
    result = train(
        model, examples[:16], task, TrainOptions(steps=12, batch_size=16, learning_rate=5e-3), records.append
    )
    model.remove()
    assert [record.step for record in records] == list(range(12))
    assert records[-1].loss < 0.8 * records[0].loss
    assert (result.first_loss, result.last_loss) == (records[0].loss, records[-1].loss)
    assert result.examples == 12 * 16
    assert result.target_tokens == sum(record.target_tokens for record in records)
    assert len({record.source_tokens for record in records}) == 1  # a batch of all examples, whatever their order
    for phase in ("data_s", "forward_s", "backward_s", "optimizer_s"):
        assert getattr(result, phase) == pytest.approx(sum(getattr(record, phase) for record in records))
        assert all(getattr(record, phase) > 0 for record in records)


def test_the_model_is_left_as_it_was_found(
    base: LoadedModel, shapes: Shapes, examples: list[Example], task: SummarizationTask
) -> None:
    weights = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    state = torch.get_rng_state()
    factors_after(base, shapes, examples, task, TrainOptions(steps=2, gradient_checkpointing=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not base.model.training
    assert not base.model.encoder.gradient_checkpointing
    assert not base.model.get_input_embeddings()(torch.tensor([[1]])).requires_grad
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None


def test_the_same_seed_gives_the_same_bits(
    base: LoadedModel, shapes: Shapes, examples: list[Example], task: SummarizationTask
) -> None:
    options = TrainOptions(steps=3, batch_size=4, seed=7)
    first, second = (factors_after(base, shapes, examples, task, options, dropout=0.2) for _ in range(2))
    other = factors_after(base, shapes, examples, task, TrainOptions(steps=3, batch_size=4, seed=8), dropout=0.2)
    assert all(np.array_equal(first[name].left, second[name].left) for name in shapes)
    assert all(np.array_equal(first[name].right, second[name].right) for name in shapes)
    assert not any(np.array_equal(first[name].left, other[name].left) for name in shapes)


@pytest.mark.parametrize(
    "variant",
    [{"micro_batch_size": 3}, {"micro_batch_size": 1}, {"gradient_checkpointing": True}],
    ids=["micro batches of 3", "micro batches of 1", "checkpointing"],
)
def test_saving_memory_does_not_change_the_update(
    base: LoadedModel,
    shapes: Shapes,
    examples: list[Example],
    task: SummarizationTask,
    variant: dict[str, object],
) -> None:
    # SGD without clipping: the update is the gradient, whose size Adam would hide.
    plain = TrainOptions(steps=1, batch_size=8, learning_rate=1.0, optimizer="sgd", max_grad_norm=0)
    saving = TrainOptions(
        steps=1,
        batch_size=8,
        learning_rate=1.0,
        optimizer="sgd",
        max_grad_norm=0,
        **variant,  # type: ignore[arg-type]
    )
    expected = factors_after(base, shapes, examples, task, plain)
    found = factors_after(base, shapes, examples, task, saving)
    largest = max(np.abs(factor.left).max() for factor in expected.values())
    assert largest > 0
    for name in shapes:
        np.testing.assert_allclose(found[name].left, expected[name].left, atol=1e-5 * largest, rtol=1e-3)


def test_gradients_are_clipped(
    base: LoadedModel, shapes: Shapes, examples: list[Example], task: SummarizationTask
) -> None:
    norms = {}
    for limit in (0.0, 1e-3):
        options = TrainOptions(steps=1, learning_rate=1.0, optimizer="sgd", max_grad_norm=limit)
        factors = factors_after(base, shapes, examples, task, options)
        scale = LoraOptions(rank=4).scale
        norms[limit] = np.sqrt(sum(np.square(factor.left / scale).sum() for factor in factors.values()))
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert norms[0.0] > 10 * norms[1e-3]


def test_label_smoothing_and_weight_decay_do_something(
    base: LoadedModel, shapes: Shapes, examples: list[Example], task: SummarizationTask
) -> None:
    plain = factors_after(base, shapes, examples, task, TrainOptions(steps=2))
    smoothed = factors_after(base, shapes, examples, task, TrainOptions(steps=2, label_smoothing=0.3))
    decayed = factors_after(base, shapes, examples, task, TrainOptions(steps=2, weight_decay=10.0))
    name = next(iter(shapes))
    assert not np.allclose(plain[name].left, smoothed[name].left, rtol=1e-3)
    assert np.linalg.norm(decayed[name].right) < np.linalg.norm(plain[name].right)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 3))
def test_every_row_is_used_once_before_any_is_used_again(count: int, batch_size: int, seed: int) -> None:
    stream = _batches(count, batch_size, seed)
    rows = [row for _ in range(-(-3 * count // batch_size)) for row in next(stream)]
    for epoch in range(3):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert max(Counter(rows).values()) - min(Counter(rows).values()) <= 1 + batch_size // count


def test_divergence_is_told_in_words(
    base: LoadedModel, shapes: Shapes, examples: list[Example], task: SummarizationTask
) -> None:
    model = install(base, list(shapes), LoraOptions(rank=4), seed=0)
    with torch.no_grad():
        model.parameters()[0].fill_(float("nan"))
    with pytest.raises(WorkerError, match=r"training diverged: .* at step 0; lower the learning rate"):
        train(model, examples, task, TrainOptions(steps=2))
    model.remove()


def test_no_examples(base: LoadedModel, shapes: Shapes, task: SummarizationTask) -> None:
    model = install(base, list(shapes), LoraOptions(rank=1), seed=0)
    with pytest.raises(DataError, match="no examples"):
        train(model, [], task, TrainOptions(steps=1))
    model.remove()


def test_running_out_of_memory_is_its_own_error(base: LoadedModel, shapes: Shapes, task: SummarizationTask) -> None:
    model = install(base, list(shapes), LoraOptions(rank=1), seed=0)
    huge = SummarizationTask(max_source_tokens=250_000, max_target_tokens=4)
    example = Example("word " * 130_000, "word")
    with pytest.raises(WorkerOutOfMemory, match="1 examples per forward pass; lower micro_batch_size"):
        train(model, [example], huge, TrainOptions(steps=1, batch_size=1))
    model.remove()


def test_evaluating_first_does_not_change_what_nf4_learns(examples: list[Example], task: SummarizationTask) -> None:
    # bitsandbytes repacks 4-bit weights in evaluation on some CPUs, and its kernel for that has no gradient
    path = resolve_model("edgefed/tiny-t5")
    modules = linear_shapes(path, ["q", "v"])
    learned = []
    for evaluates in (False, True):
        model = install(load_base(path, "nf4", "cpu"), list(modules), LoraOptions(rank=2), seed=0)
        if evaluates:
            validation_loss(model, examples[:4], task)
        train(model, examples, task, TrainOptions(steps=2, batch_size=4))
        learned.append(model.get_factors())
    for module in modules:
        assert np.array_equal(learned[0][module].left, learned[1][module].left)
        assert learned[0][module].left.any()
