from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgefed.data.examples import Example
from edgefed.protocol.tasks import Quantization, SummarizationTask
from edgefed.training.adapters import AdaptedModel, install
from edgefed.training.base_model import LoadedModel, load_base
from edgefed.training.loop import train
from edgefed.training.options import ExamplePrivacy, LoraOptions, TrainOptions
from edgefed.training.privacy import PrivateGradients, poisson_batches, private_gradients, secret_normal
from edgefed.training.round_work import Suspend
from edgefed.training.steps import StepRecord
from edgefed.training.summarization import collate, example_losses, summed_loss
from edgefed.training.suspension import Suspended

pytestmark = pytest.mark.torch
Shapes = dict[str, tuple[int, int]]
NO_NOISE = 1e-9


@pytest.fixture(params=["fp32", "bf16", "int8", "nf4"])
def quantized(request: pytest.FixtureRequest, tiny_path: Path, shapes: Shapes) -> Iterator[AdaptedModel]:
    quantization: Quantization = request.param
    model = install(load_base(tiny_path, quantization, "cpu", threads=1), list(shapes), LoraOptions(rank=4), seed=0)
    with_nonzero_b(model)
    yield model
    model.remove()


@pytest.fixture
def model(base: LoadedModel, shapes: Shapes) -> Iterator[AdaptedModel]:
    model = install(base, list(shapes), LoraOptions(rank=4), seed=0, held_rank=2)
    with_nonzero_b(model)
    yield model
    model.remove()


def with_nonzero_b(model: AdaptedModel) -> None:
    """B starts at zero, where A has no gradient: move on from there."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def alone(model: AdaptedModel, task: SummarizationTask, example: Example) -> list[torch.Tensor]:
    """The gradient of one example's mean loss, by plain autograd."""
    batch = collate(model.tokenizer, task, [example], model.device)
    loss = summed_loss(model.model, batch) / batch.target_tokens
    return list(torch.autograd.grad(loss, model.parameters()))


def norm_of(gradients: list[torch.Tensor]) -> float:
    return float(torch.cat([one.flatten() for one in gradients]).norm())


def gathered(
    model: AdaptedModel, task: SummarizationTask, passes: list[list[Example]], options: TrainOptions, count: int
) -> list[torch.Tensor]:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with private_gradients(model, options, count) as gradients:
        for examples in passes:
            batch = collate(model.tokenizer, task, examples, model.device)
            losses, tokens = gradients.forward(model, batch, label_smoothing=0.0)
            gradients.backward(losses / tokens)
        gradients.finish()
    found = []
    for parameter in model.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad)
        parameter.grad = None
    return found


@pytest.mark.parametrize("passes", [1, 2])
def test_the_gradient_is_the_mean_of_clipped_gradients_of_single_examples(
    quantized: AdaptedModel, examples: list[Example], task: SummarizationTask, passes: int
) -> None:
    some = examples[:4]
    single = [alone(quantized, task, example) for example in some]
    norms = [norm_of(gradients) for gradients in single]
    clip = float(np.median(norms))
    assert min(norms) < clip < max(norms), "some are to be clipped, and some are not"
    expected = [
        sum(gradients[i] * min(1.0, clip / norm) for gradients, norm in zip(single, norms, strict=True)) / 8
        for i in range(len(single[0]))
    ]
    options = TrainOptions(steps=1, batch_size=8, privacy=ExamplePrivacy(noise_multiplier=NO_NOISE, clip_norm=clip))
    cut = [some] if passes == 1 else [some[:3], some[3:]]
    found = gathered(quantized, task, cut, options, count=64)
    exact = quantized.base.quantization in ("fp32", "nf4")  # bf16 and int8 round, differently with other padding
    for one, other in zip(found, expected, strict=True):
        assert norm_of([one - other]) <= (1e-4 if exact else 0.1) * clip / 8


def test_checkpointing_goes_through_the_examples_one_by_one_and_comes_to_the_same(
    model: AdaptedModel, examples: list[Example], task: SummarizationTask
) -> None:
    privacy = ExamplePrivacy(noise_multiplier=NO_NOISE, clip_norm=0.5)
    options = TrainOptions(steps=1, batch_size=4, privacy=privacy)
    whole = gathered(model, task, [examples[:3]], options, count=64)
    recomputing = TrainOptions(steps=1, batch_size=4, privacy=privacy, gradient_checkpointing=True)
    pieces = gathered(model, task, [[example] for example in examples[:3]], recomputing, count=64)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    result = train(model, examples, task, recomputing)
    assert result.steps == 1


def test_no_example_moves_the_sum_by_more_than_the_clip_norm() -> None:
    weight = torch.zeros(3, 5, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    gradients = PrivateGradients([weight], ExamplePrivacy(NO_NOISE, clip_norm=2.0), 1.0, one_by_one=True)
    for size in (1e-30, 0.1, 7.0, 1e30, float("nan"), float("inf")):
        before = gradients._sums[0].clone()
        weight.grad.fill_(size)
        gradients._add_clipped([gradients._own(weight)])
        assert float((gradients._sums[0] - before).norm()) <= 2.0 * (1 + 1e-6)
    assert torch.isfinite(gradients._sums[0]).all()


def test_noise_has_the_deviation_that_was_asked_for_and_hits_every_entry() -> None:
    weight = torch.zeros(400, 250, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    gradients = PrivateGradients([weight], ExamplePrivacy(3.0, clip_norm=0.5), 4.0, one_by_one=False)
    gradients.finish()
    first = weight.grad.clone()
    assert float(first.std()) == pytest.approx(3.0 * 0.5 / 4.0, rel=0.02)
    assert float(first.mean()) == pytest.approx(0.0, abs=6 * 0.375 / 100_000**0.5)
    assert (first != 0).all()
    gradients.finish()
    assert float((weight.grad * first).mean()) == pytest.approx(0.0, abs=6 * 0.375**2 / 100_000**0.5)


def test_secret_numbers_are_normal() -> None:
    drawn = np.sort(secret_normal((3, 33_333)).numpy().ravel())
    assert drawn.size == 99_999
    for quantile, value in ((0.0228, -2.0), (0.1587, -1.0), (0.5, 0.0), (0.8413, 1.0), (0.9772, 2.0)):
        assert np.searchsorted(drawn, value) / drawn.size == pytest.approx(quantile, abs=0.008)
    assert not np.array_equal(secret_normal((9,)), secret_normal((9,)))


def test_every_row_is_taken_with_the_same_probability() -> None:
    batches = poisson_batches(50, 0.2)
    counts = np.zeros(50)
    sizes = []
    for _ in range(2000):
        batch = next(batches)
        counts[batch] += 1
        sizes.append(len(batch))
    assert counts.min() > 300
    assert counts.max() < 500
    assert np.var(sizes) == pytest.approx(50 * 0.2 * 0.8, rel=0.25), "sizes vary as those of independent draws do"
    assert next(poisson_batches(7, 1.0)) == list(range(7))


def test_a_private_training_learns_where_noise_is_small(
    model: AdaptedModel, examples: list[Example], task: SummarizationTask
) -> None:
    records: list[StepRecord] = []
    privacy = ExamplePrivacy(noise_multiplier=0.05, clip_norm=1.0)
    options = TrainOptions(steps=12, batch_size=16, learning_rate=5e-3, micro_batch_size=5, privacy=privacy)
    train(model, examples[:16], task, options, records.append)
    assert records[-1].loss < 0.85 * records[0].loss
    for module in model.model.modules():
        assert not module._backward_hooks, "no hook stays behind"


def test_a_step_that_takes_no_example_is_noise_alone(
    model: AdaptedModel, examples: list[Example], task: SummarizationTask
) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    options = TrainOptions(steps=6, batch_size=1, privacy=ExamplePrivacy(noise_multiplier=1.0))
    records: list[StepRecord] = []
    train(model, examples, task, options, records.append)  # six steps without a single empty one: 0.63⁶ = 6 %
    assert all(np.isfinite(record.loss) for record in records)
    assert all(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_what_is_drawn_does_not_follow_from_the_seed(
    model: AdaptedModel, examples: list[Example], task: SummarizationTask
) -> None:
    start = [parameter.detach().clone() for parameter in model.parameters()]
    options = TrainOptions(steps=1, batch_size=2, privacy=ExamplePrivacy(noise_multiplier=1.0), seed=3)
    ends = []
    for _ in range(2):
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.data.copy_(value)
        train(model, examples, task, options)
        ends.append(model.parameters()[0].detach().clone())
    assert not torch.equal(*ends)


def test_a_suspended_private_training_goes_on_and_makes_all_its_steps(
    model: AdaptedModel, examples: list[Example], task: SummarizationTask
) -> None:
    options = TrainOptions(steps=4, batch_size=4, privacy=ExamplePrivacy(noise_multiplier=0.5))

    def stop(record: StepRecord) -> None:
        raise Suspend

    with pytest.raises(Suspended) as stopped:
        train(model, examples, task, options, stop)
    kept = [weight.clone() for weight in stopped.value.suspension.weights]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    records: list[StepRecord] = []
    result = train(model, examples, task, options, records.append, resume=stopped.value.suspension)
    assert [record.step for record in records] == [1, 2, 3]
    assert result.steps == 4
    moved = norm_of([one.detach() - other for one, other in zip(model.parameters(), kept, strict=True)])
    assert 0 < moved <= 3 * options.learning_rate * sum(weight.numel() for weight in kept) ** 0.5 * 1.5


def test_losses_of_examples_add_up_to_the_loss_of_the_batch(
    model: AdaptedModel, examples: list[Example], task: SummarizationTask
) -> None:
    batch = collate(model.tokenizer, task, examples[:3], model.device)
    for smoothing in (0.0, 0.1):
        single = example_losses(model.model, batch, label_smoothing=smoothing)
        assert single.shape == (3,)
        torch.testing.assert_close(single.sum(), summed_loss(model.model, batch, label_smoothing=smoothing))
