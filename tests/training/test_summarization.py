from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgefed.data.examples import Example
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.base_model import LoadedModel
from edgefed.training.summarization import collate, generate, longest, rouge, summed_loss

pytestmark = pytest.mark.torch


def test_a_batch_is_padded_to_its_longest_and_padding_does_not_count(
    base: LoadedModel, task: SummarizationTask
) -> None:
    batch = collate(
        base.tokenizer, task, [Example("Hello.", "On Friday."), Example("Hello, hello, hello.", "No.")], base.device
    )
    assert batch.input_ids.shape == batch.attention_mask.shape
    assert batch.source_tokens == int(batch.attention_mask.sum()) < batch.attention_mask.numel()
    assert batch.target_tokens == int((batch.labels != -100).sum()) < batch.labels.numel()
    assert base.tokenizer.decode(batch.input_ids[0], skip_special_tokens=True).startswith("summarize: Hello.")
    assert batch.labels[0].tolist()[-1] == base.tokenizer.eos_token_id


def test_long_texts_are_cut(base: LoadedModel) -> None:
    task = SummarizationTask(max_source_tokens=12, max_target_tokens=5)
    batch = collate(base.tokenizer, task, [Example("Monday " * 50, "Tuesday " * 50)], base.device)
    assert batch.input_ids.shape == (1, 12)
    assert batch.labels.shape == (1, 5)


def test_the_longest_texts_are_as_long_as_in_a_batch_of_all(
    base: LoadedModel, task: SummarizationTask, examples: list[Example]
) -> None:
    batch = collate(base.tokenizer, task, examples, base.device)
    assert longest(base.tokenizer, task, examples * 10) == (batch.input_ids.shape[1], batch.labels.shape[1])


@torch.no_grad()
def test_loss_is_a_sum_over_tokens_whatever_the_batch(
    base: LoadedModel, task: SummarizationTask, examples: list[Example]
) -> None:
    together = float(summed_loss(base.model, collate(base.tokenizer, task, examples[:5], base.device)))
    alone = sum(float(summed_loss(base.model, collate(base.tokenizer, task, [e], base.device))) for e in examples[:5])
    assert together == pytest.approx(alone, rel=1e-4)


def test_generation_keeps_the_order_and_reports_progress(
    base: LoadedModel, task: SummarizationTask, examples: list[Example]
) -> None:
    sources = [example.source for example in examples[:5]]
    progress: list[tuple[int, int]] = []
    together = generate(
        base.model,
        base.tokenizer,
        task,
        sources,
        base.device,
        batch_size=2,
        on_progress=lambda *at: progress.append(at),
    )
    alone = [generate(base.model, base.tokenizer, task, [source], base.device)[0] for source in sources]
    assert together == alone
    assert progress == [(2, 5), (4, 5), (5, 5)]


def test_beams_find_texts_at_least_as_likely(
    base: LoadedModel, task: SummarizationTask, examples: list[Example]
) -> None:
    sources = [example.source for example in examples[:3]]
    beams = generate(base.model, base.tokenizer, task, sources, base.device, beams=3)
    assert len(beams) == 3
    assert beams != generate(base.model, base.tokenizer, task, sources, base.device)


@given(st.lists(st.text("abcdefgh ", min_size=1).filter(str.strip), min_size=1, max_size=4))
def test_rouge_of_identical_texts_is_one(texts: list[str]) -> None:
    found = rouge(texts, texts)
    assert found.rouge1 == found.rouge_l == 1
    assert found.rouge2 <= 1


def test_rouge_of_known_texts() -> None:
    found = rouge(["the cat sat", "x"], ["the cat ran", "y"])
    assert found.rouge1 == pytest.approx((2 / 3 + 0) / 2)
    assert found.rouge2 == pytest.approx((1 / 2 + 0) / 2)
    assert found.rouge_l == pytest.approx((2 / 3 + 0) / 2)
    assert math.isnan(rouge([], []).rouge1)
