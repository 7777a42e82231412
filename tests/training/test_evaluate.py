from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from edgefed.data.examples import Example
from edgefed.errors import AdapterError, DataError, WorkerError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.peft_files import write_peft
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.adapters import install
from edgefed.training.base_model import LoadedModel
from edgefed.training.evaluate import evaluate, summarise, validation_loss, with_adapter
from edgefed.training.loop import train
from edgefed.training.options import LoraOptions, TrainOptions

pytestmark = pytest.mark.torch
Shapes = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def trained(
    base: LoadedModel,
    shapes: Shapes,
    examples: list[Example],
    task: SummarizationTask,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, LowRank], Path]:
    """Factors after a little training, and the same as peft writes them."""
    model = install(base, list(shapes), LoraOptions(rank=4, alpha=12), seed=0)
    train(model, examples, task, TrainOptions(steps=20, batch_size=8, learning_rate=5e-3))
    factors = model.get_factors()
    directory = tmp_path_factory.mktemp("peft")
    model.model.save_pretrained(str(directory), selected_adapters=["edgefed_train"])
    model.remove()
    return factors, directory / "edgefed_train"


def test_a_trained_adapter_is_better_than_the_base(
    base: LoadedModel, trained: tuple[dict[str, LowRank], Path], examples: list[Example], task: SummarizationTask
) -> None:
    progress: list[tuple[int, int]] = []
    before = evaluate(base, examples[:16], task)
    with with_adapter(base, trained[0]) as model:
        after = evaluate(model, examples[:16], task, on_progress=lambda *at: progress.append(at))
        assert evaluate(model, examples[:16], task, with_rouge=False).rouge is None
    assert after.examples == 16
    assert after.loss < before.loss
    assert after.rouge is not None
    assert progress == [(16, 32), (32, 32)]


def test_factors_and_peft_directory_are_the_same_adapter(
    base: LoadedModel, trained: tuple[dict[str, LowRank], Path], examples: list[Example], task: SummarizationTask
) -> None:
    plain = validation_loss(base, examples[:8], task)
    losses = []
    for adapter in trained:
        with with_adapter(base, adapter) as model:
            losses.append(validation_loss(model, examples[:8], task))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert abs(losses[0] - plain) > 0.1
    with with_adapter(base, None) as model:
        assert validation_loss(model, examples[:8], task) == plain


def test_peft_alone_reads_what_training_wrote(
    tiny_path: Path,
    trained: tuple[dict[str, LowRank], Path],
    base: LoadedModel,
    examples: list[Example],
    task: SummarizationTask,
) -> None:
    fresh = AutoModelForSeq2SeqLM.from_pretrained(tiny_path, dtype=torch.float32)
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23, and not 5.20, by an old name
        warnings.simplefilter("ignore", FutureWarning)
        lone = PeftModel.from_pretrained(fresh, str(trained[1]))
    reference = LoadedModel(lone.eval(), base.tokenizer, "fp32", base.device)
    with with_adapter(base, trained[0]) as model:
        assert validation_loss(model, examples[:4], task) == pytest.approx(
            validation_loss(reference, examples[:4], task), rel=1e-5
        )


def test_modules_may_differ_in_rank(
    tiny_path: Path,
    trained: tuple[dict[str, LowRank], Path],
    base: LoadedModel,
    tmp_path: Path,
    examples: list[Example],
    task: SummarizationTask,
) -> None:
    factors = dict(trained[0])
    name = min(factors)
    factors[name] = factors[name].truncated(2)
    write_peft(tmp_path / "adapter", factors, base_model=str(tiny_path))
    fresh = AutoModelForSeq2SeqLM.from_pretrained(tiny_path, dtype=torch.float32)
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23, and not 5.20, by an old name
        warnings.simplefilter("ignore", FutureWarning)
        lone = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    reference = validation_loss(LoadedModel(lone.eval(), base.tokenizer, "fp32", base.device), examples[:4], task)
    with with_adapter(base, factors) as model:
        assert validation_loss(model, examples[:4], task) == pytest.approx(reference, rel=1e-5)


def test_the_loss_does_not_depend_on_the_batch_size(
    base: LoadedModel, examples: list[Example], task: SummarizationTask
) -> None:
    losses = [validation_loss(base, examples[:9], task, batch_size=size) for size in (1, 4, 9)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_a_text_in_gives_a_text_out(base: LoadedModel, task: SummarizationTask) -> None:
    first, second = summarise(base, ["Host: Hello.\nGuest: A table on Friday.", ""], task)
    assert isinstance(first, str)
    assert "\n" not in first + second


def test_bad_adapters_are_refused_and_the_base_stays_clean(
    base: LoadedModel,
    trained: tuple[dict[str, LowRank], Path],
    tmp_path: Path,
    examples: list[Example],
    task: SummarizationTask,
) -> None:
    plain = validation_loss(base, examples[:4], task)
    factors = dict(trained[0])
    name = min(factors)
    with pytest.raises(AdapterError, match=r"adapter_config.json"), with_adapter(base, tmp_path):
        pass
    (tmp_path / "adapter_model.safetensors").write_bytes(b"garbage")
    (tmp_path / "adapter_config.json").write_bytes((trained[1] / "adapter_config.json").read_bytes())
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors"), with_adapter(base, tmp_path):
        pass
    with pytest.raises(AdapterError, match="has no factors"), with_adapter(base, {}):
        pass
    with (
        pytest.raises(AdapterError, match="do not fit"),
        with_adapter(base, factors | {name: LowRank(np.zeros((64, 4), np.float32), np.zeros((4, 128), np.float32))}),
    ):
        pass
    assert validation_loss(base, examples[:4], task) == plain


def test_no_examples(base: LoadedModel, task: SummarizationTask) -> None:
    with pytest.raises(DataError, match="no examples"):
        evaluate(base, [], task)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_says_that_the_adapter_has_diverged(
    base: LoadedModel,
    trained: tuple[dict[str, LowRank], Path],
    examples: list[Example],
    task: SummarizationTask,
    bad: float,
) -> None:
    name = min(trained[0])
    diverged = {**trained[0], name: LowRank(np.full_like(trained[0][name].left, bad), trained[0][name].right)}
    with (
        pytest.raises(WorkerError, match=r"the received global adapter\) has diverged"),
        with_adapter(base, diverged) as model,
    ):
        evaluate(model, examples[:4], task, with_rouge=False)
