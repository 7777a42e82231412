"""Summarization as a task: examples to batches, a batch to its loss, sources to summaries, and ROUGE between texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch.nn.functional import cross_entropy

from edgefed.data.examples import Example
from edgefed.protocol.tasks import SummarizationTask

__all__ = ["Batch", "Rouge", "collate", "example_losses", "generate", "longest", "rouge", "summed_loss"]

_AT_ONCE = 256  # examples tokenized in one call
IGNORED = -100  # cross_entropy's label for "do not count"


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples as tensors on the model's device.

    Attributes:
        input_ids: (batch, source) int64, padded to the longest.
        attention_mask: (batch, source) int64, 1 on real tokens.
        labels: (batch, target) int64, -100 on padding.
        source_tokens: real tokens of the sources.
        target_tokens: real tokens of the targets.
        lengths: real tokens of every example's source and target.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    source_tokens: int
    target_tokens: int
    lengths: tuple[tuple[int, int], ...]


def collate(tokenizer: Any, task: SummarizationTask, examples: Sequence[Example], device: torch.device) -> Batch:
    """Return examples as one batch, padded to its longest source and target."""
    sources = _encode_sources(tokenizer, task, [example.source for example in examples])
    targets = tokenizer(
        text_target=[example.target for example in examples],
        max_length=task.max_target_tokens,
        truncation=True,
        padding=True,
        return_tensors="pt",
    )
    labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, IGNORED)
    return Batch(
        input_ids=sources["input_ids"].to(device),
        attention_mask=sources["attention_mask"].to(device),
        labels=labels.to(device),
        source_tokens=int(sources["attention_mask"].sum()),
        target_tokens=int(targets["attention_mask"].sum()),
        lengths=tuple(
            zip(sources["attention_mask"].sum(1).tolist(), targets["attention_mask"].sum(1).tolist(), strict=True)
        ),
    )


def longest(tokenizer: Any, task: SummarizationTask, examples: Sequence[Example]) -> tuple[int, int]:
    """Return the tokens of the longest source and of the longest target, cut as training cuts them."""
    source, target = 0, 0
    for start in range(0, len(examples), _AT_ONCE):
        some = examples[start : start + _AT_ONCE]
        prompts = [task.prompt.replace("{source}", example.source) for example in some]
        sources = tokenizer(prompts, max_length=task.max_source_tokens, truncation=True)
        targets = tokenizer(
            text_target=[example.target for example in some], max_length=task.max_target_tokens, truncation=True
        )
        source = max(source, *map(len, sources["input_ids"]))
        target = max(target, *map(len, targets["input_ids"]))
    return source, target


def _encode_sources(tokenizer: Any, task: SummarizationTask, sources: Sequence[str]) -> Any:
    return tokenizer(
        [task.prompt.replace("{source}", source) for source in sources],
        max_length=task.max_source_tokens,
        truncation=True,
        padding=True,
        return_tensors="pt",
    )


def summed_loss(model: Any, batch: Batch, *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Return the cross entropy summed over the target tokens, in nats, as a scalar with a gradient.

    A sum and not a mean: micro-batches with different numbers of tokens then add up to the gradient of the whole batch.
    """
    return cross_entropy(
        _logits(model, batch).flatten(0, 1).float(),
        batch.labels.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def example_losses(model: Any, batch: Batch, *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Return each example's cross entropy summed over its own target tokens, in nats: (batch,), with a gradient."""
    losses = cross_entropy(
        _logits(model, batch).flatten(0, 1).float(),
        batch.labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view(batch.labels.shape).sum(1)


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    logits: torch.Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels=batch.labels),
        use_cache=False,
    ).logits
    return logits


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    task: SummarizationTask,
    sources: Sequence[str],
    device: torch.device,
    *,
    batch_size: int = 16,
    beams: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return a summary per source, in the given order, decoded greedily or by beam search.

    Args:
        model: the network, in evaluation mode.
        tokenizer: its tokenizer.
        task: prompt and lengths.
        sources: the texts.
        device: where the model is.
        batch_size: sources decoded together.
        beams: 1 decodes greedily.
        on_progress: called with (done, of) after every batch.
    """
    by_length = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    written = [""] * len(sources)
    for start in range(0, len(by_length), batch_size):
        group = by_length[start : start + batch_size]
        inputs = _encode_sources(tokenizer, task, [sources[i] for i in group])
        tokens = model.generate(
            input_ids=inputs["input_ids"].to(device),
            attention_mask=inputs["attention_mask"].to(device),
            max_new_tokens=task.max_target_tokens,
            num_beams=beams,
            do_sample=False,
        )
        for i, text in zip(group, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            written[i] = text.strip()
        if on_progress is not None:
            on_progress(start + len(group), len(sources))
    return written


@dataclass(frozen=True, slots=True)
class Rouge:
    """Mean F1 scores between 0 and 1, of shared words, shared pairs of words, and the longest common subsequence."""

    rouge1: float
    rouge2: float
    rouge_l: float


def rouge(predictions: Sequence[str], references: Sequence[str]) -> Rouge:
    """Return ROUGE-1, -2 and -L by Google's rouge-score with stemming, averaged over pairs; nan of no pairs."""
    if not references:
        return Rouge(math.nan, math.nan, math.nan)
    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds), use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    means = [sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds]
    return Rouge(*means)
