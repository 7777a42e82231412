"""How well a model summarises: loss and ROUGE on examples, of the base alone or with an adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from edgefed.data.examples import Example
from edgefed.errors import AdapterError, DataError, Diverged, ModelError
from edgefed.lora.adapters import adapter_rank, levelled
from edgefed.lora.low_rank import LowRank
from edgefed.lora.peft_files import read_peft
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.adapters import AdaptedModel, install
from edgefed.training.base_model import LoadedModel
from edgefed.training.options import LoraOptions
from edgefed.training.summarization import Rouge, collate, generate, rouge, summed_loss

__all__ = ["Evaluation", "evaluate", "summarise", "token_loss", "validation_loss", "with_adapter"]

Model = LoadedModel | AdaptedModel
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        examples: how many were evaluated.
        loss: mean over all their target tokens, nats.
        rouge: None where no summaries were asked for.
    """

    examples: int
    loss: float
    rouge: Rouge | None


@contextmanager
def with_adapter(base: LoadedModel, adapter: Path | Mapping[str, LowRank] | None) -> Iterator[Model]:
    """Lend the base model with an adapter in it, and give it back clean.

    Args:
        base: a model without LoRA.
        adapter: a PEFT directory, factors by module, or None for the base as it is.

    Raises:
        AdapterError: the adapter does not fit this model.
    """
    if adapter is None:
        yield base
        return
    factors = levelled(read_peft(adapter)[0] if isinstance(adapter, Path) else adapter)
    rank = adapter_rank(factors)
    if not rank:
        raise AdapterError("the adapter has no factors")
    try:
        adapted = install(base, list(factors), LoraOptions(rank=rank, alpha=float(rank)), seed=0)
    except ModelError as error:
        raise AdapterError(f"the adapter does not fit the model: {error}") from error
    try:
        adapted.set_factors("train", factors)
        yield adapted
    finally:
        adapted.remove()


def evaluate(
    model: Model,
    examples: Sequence[Example],
    task: SummarizationTask,
    *,
    with_rouge: bool = True,
    batch_size: int = 16,
    beams: int = 1,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Return the loss on examples and, if asked for, ROUGE of the summaries that the model writes.

    `on_progress` is called with (done, of), where an example with ROUGE counts twice: read once, summarized once.

    Raises:
        DataError: there are no examples.
        Diverged: the loss is not finite.
    """
    of = len(examples) * (2 if with_rouge else 1)

    def tell(before: int, done: int) -> None:
        if on_progress is not None:
            on_progress(before + done, of)

    loss, _ = token_loss(model, examples, task, batch_size=batch_size, on_progress=lambda done, _: tell(0, done))
    if not with_rouge:
        return Evaluation(len(examples), loss, None)
    written = summarise(
        model,
        [example.source for example in examples],
        task,
        batch_size=batch_size,
        beams=beams,
        on_progress=lambda done, _: tell(len(examples), done),
    )
    return Evaluation(len(examples), loss, rouge(written, [example.target for example in examples]))


@torch.inference_mode()
def token_loss(
    model: Model,
    examples: Sequence[Example],
    task: SummarizationTask,
    *,
    batch_size: int = 16,
    on_progress: Progress | None = None,
) -> tuple[float, int]:
    """Return the cross entropy in nats, averaged over the target tokens of all examples, and how many those are.

    Raises:
        DataError: there are no examples.
        Diverged: the loss is not finite, so that it could neither be sent nor averaged.
    """
    if not examples:
        raise DataError("there are no examples to evaluate on")
    by_length = sorted(examples, key=lambda example: len(example.source))
    total, tokens = 0.0, 0
    for start in range(0, len(by_length), batch_size):
        batch = collate(model.tokenizer, task, by_length[start : start + batch_size], model.device)
        total += float(summed_loss(model.model, batch))
        tokens += batch.target_tokens
        if on_progress is not None:
            on_progress(min(start + batch_size, len(examples)), len(examples))
    if not math.isfinite(total):
        raise Diverged(
            f"the evaluation loss is {total}: the adapter under evaluation (in a round: the received global adapter) "
            "has diverged"
        )
    return total / tokens, tokens


def validation_loss(
    model: Model, examples: Sequence[Example], task: SummarizationTask, *, batch_size: int = 16
) -> float:
    """Return the first half of `token_loss`."""
    return token_loss(model, examples, task, batch_size=batch_size)[0]


def summarise(
    model: Model,
    texts: Sequence[str],
    task: SummarizationTask,
    *,
    batch_size: int = 16,
    beams: int = 1,
    on_progress: Progress | None = None,
) -> list[str]:
    """Return a summary per text, in order; arguments as of `edgefed.training.summarization.generate`."""
    return generate(
        model.model,
        model.tokenizer,
        task,
        texts,
        model.device,
        batch_size=batch_size,
        beams=beams,
        on_progress=on_progress,
    )
