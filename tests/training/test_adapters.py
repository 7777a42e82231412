from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgefed.data.examples import Example
from edgefed.errors import AdapterError, ModelError
from edgefed.lora.low_rank import LowRank
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.adapters import AdaptedModel, install
from edgefed.training.base_model import LoadedModel
from edgefed.training.evaluate import validation_loss
from edgefed.training.loop import train
from edgefed.training.options import LoraOptions, RankScaling, TrainOptions
from edgefed.training.summarization import Batch, collate, summed_loss

pytestmark = pytest.mark.torch
Shapes = dict[str, tuple[int, int]]


@pytest.fixture
def model(base: LoadedModel, shapes: Shapes) -> Iterator[AdaptedModel]:
    adapted = install(base, list(shapes), LoraOptions(rank=4), seed=0)
    yield adapted
    adapted.remove()


@pytest.fixture
def batch(base: LoadedModel, task: SummarizationTask, examples: list[Example]) -> Batch:
    return collate(base.tokenizer, task, examples[:4], base.device)


@torch.no_grad()
def logits(network: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).logits  # type: ignore[no-any-return]


def random_factors(shapes: Shapes, rank: int, seed: int) -> dict[str, LowRank]:
    rng = np.random.default_rng(seed)
    return {
        name: LowRank(
            rng.normal(0, 0.05, (out, rank)).astype(np.float32), rng.normal(0, 0.2, (rank, width)).astype(np.float32)
        )
        for name, (out, width) in shapes.items()
    }


def logits_with_dense_change(base: LoadedModel, change: dict[str, LowRank], batch: Batch) -> torch.Tensor:
    """The reference: add ΔW to the weights themselves, and take it away again."""
    weights = {name: base.model.get_submodule(name).weight for name in change}
    saved = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight += torch.from_numpy(change[name].dense())
    found = logits(base.model, batch)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])
    return found


@pytest.mark.parametrize("held_rank", [0, 3])
def test_a_model_counts_its_operations_as_torch_does(
    base: LoadedModel, shapes: Shapes, task: SummarizationTask, held_rank: int
) -> None:
    batch = collate(
        base.tokenizer, task, [Example("On Friday.", "Friday."), Example("On Friday.", "Friday.")], base.device
    )
    adapted = install(base, list(shapes), LoraOptions(rank=4), seed=0, held_rank=held_rank)
    # torch does not count its fused attention for CPUs, only the plain products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(summed_loss(adapted.model, batch))
    found = adapted.flops()(batch.lengths)
    adapted.remove()
    assert len(set(batch.lengths)) == 1, "no padding"
    assert found == counter.get_total_flops()


@pytest.mark.parametrize(("rank", "scaling"), [(2, "alpha/r"), (7, "alpha/sqrt(r)")])
def test_factors_come_back_as_they_went_in(
    model: AdaptedModel, shapes: Shapes, rank: int, scaling: RankScaling
) -> None:
    model.reinstall(LoraOptions(rank=rank, alpha=12, scaling=scaling), seed=1)
    factors = random_factors(shapes, rank, seed=2)
    model.set_factors("train", factors)
    for name, factor in model.get_factors().items():
        np.testing.assert_allclose(factor.left, factors[name].left, rtol=1e-6)
        np.testing.assert_array_equal(factor.right, factors[name].right)


def test_the_scale_is_part_of_the_value(base: LoadedModel, shapes: Shapes, batch: Batch) -> None:
    factors = random_factors(shapes, 3, seed=3)
    reference = logits_with_dense_change(base, factors, batch)
    adapted = install(base, list(shapes), LoraOptions(rank=3, alpha=8), seed=0)
    for options in (LoraOptions(rank=3, alpha=8), LoraOptions(rank=3, alpha=50, scaling="alpha/sqrt(r)")):
        adapted.reinstall(options, seed=0)
        adapted.set_factors("train", factors)
        torch.testing.assert_close(logits(adapted.model, batch), reference, rtol=1e-4, atol=1e-4)
    adapted.remove()


def test_a_held_branch_adds_its_change_and_gets_no_gradient(
    base: LoadedModel, shapes: Shapes, batch: Batch, examples: list[Example], task: SummarizationTask
) -> None:
    held = random_factors(shapes, 6, seed=4)
    reference = logits_with_dense_change(base, held, batch)
    adapted = install(base, list(shapes), LoraOptions(rank=2), seed=0, held_rank=6)
    adapted.set_factors("held", held)
    assert adapted.held_rank == 6
    torch.testing.assert_close(logits(adapted.model, batch), reference, rtol=1e-4, atol=1e-4)
    trainable = [p for p in adapted.model.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in adapted.parameters()}
    before = adapted.get_factors("held")
    train(adapted, examples, task, TrainOptions(steps=2, learning_rate=1e-2))
    for name, factor in adapted.get_factors("held").items():
        np.testing.assert_array_equal(factor.left, before[name].left)
    assert all(factor.left.any() for factor in adapted.get_factors("train").values())
    both = {name: LowRank.stack([held[name], factor]) for name, factor in adapted.get_factors("train").items()}
    found = logits(adapted.model, batch)
    adapted.remove()
    torch.testing.assert_close(found, logits_with_dense_change(base, both, batch), rtol=1e-4, atol=1e-4)


def test_fresh_factors_change_nothing_and_come_from_the_seed(base: LoadedModel, shapes: Shapes, batch: Batch) -> None:
    reference = logits(base.model, batch)
    adapted = install(base, list(shapes), LoraOptions(rank=4), seed=5)
    assert torch.equal(logits(adapted.model, batch), reference)
    first = adapted.get_factors()
    adapted.reinstall(LoraOptions(rank=4), seed=6)
    second = adapted.get_factors()
    adapted.reinstall(LoraOptions(rank=4), seed=5)
    third = adapted.get_factors()
    for name, (_, width) in shapes.items():
        assert np.array_equal(first[name].right, third[name].right)
        assert not np.array_equal(first[name].right, second[name].right)
        assert 0.8 * width**-0.5 < np.abs(first[name].right).max() <= width**-0.5
    adapted.remove()
    assert torch.equal(logits(base.model, batch), reference)


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


def test_changing_ranks_on_a_warm_model_leaks_nothing(
    model: AdaptedModel, shapes: Shapes, examples: list[Example], task: SummarizationTask
) -> None:
    def one_round(rank: int, held_rank: int) -> None:
        model.reinstall(LoraOptions(rank=rank), seed=0, held_rank=held_rank)
        if held_rank:
            model.set_factors("held", random_factors(shapes, held_rank, seed=0))
        train(model, examples, task, TrainOptions(steps=1, batch_size=2))

    one_round(4, 8)
    expected = live_tensors()
    for rank, held_rank in ((8, 2), (2, 0), (16, 16), (4, 8)):
        one_round(rank, held_rank)
        assert model.held_rank == held_rank
        assert {factor.rank for factor in model.get_factors().values()} == {rank}
    assert live_tensors() == expected


def test_factors_that_do_not_fit_are_refused_in_words(model: AdaptedModel, shapes: Shapes) -> None:
    with pytest.raises(
        AdapterError, match=r"factors of shapes \(128, 5\) and \(5, 128\) do not fit the 'train' adapter's"
    ):
        model.set_factors("train", random_factors(shapes, 5, seed=0))
    some = dict(list(random_factors(shapes, 4, seed=0).items())[1:])
    with pytest.raises(AdapterError, match=rf"differ in {min(shapes)}"):
        model.set_factors("train", some)
    with pytest.raises(AdapterError, match="no 'held' adapter is installed"):
        model.set_factors("held", random_factors(shapes, 4, seed=0))


def test_unknown_layers_are_refused(base: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"has no layer encoder\.q"):
        install(base, ["encoder.q"], LoraOptions(rank=1), seed=0)


def test_feed_forward_and_output_projections_can_be_adapted_too(
    base: LoadedModel, examples: list[Example], task: SummarizationTask
) -> None:
    names = [
        f"encoder.block.0.layer.{path}"
        for path in ("0.SelfAttention.o", "1.DenseReluDense.wi_1", "1.DenseReluDense.wo")
    ]
    adapted = install(base, names, LoraOptions(rank=2, dropout=0.1), seed=0)
    before = validation_loss(adapted, examples[:8], task)
    train(adapted, examples[:8], task, TrainOptions(steps=3, learning_rate=1e-2))
    assert {name: factor.shape for name, factor in adapted.get_factors().items()}[names[2]] == (128, 384)
    assert validation_loss(adapted, examples[:8], task) < before
    adapted.remove()
