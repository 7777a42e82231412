from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.planner.memory import activation_bytes, peak_memory, weight_bytes
from edgefed.planner.values import QUANTIZATIONS
from tests.planner.machines import BASE, choice, workload


def test_weights_by_precision() -> None:
    assert weight_bytes(BASE, "fp32") == 4 * BASE.parameters
    assert weight_bytes(BASE, "bf16") == 2 * BASE.parameters
    kept = BASE.embedding_parameters + BASE.other_parameters
    wo = sum(one.rows * one.columns * one.count for one in BASE.linears() if one.name == "wo")
    quantized = BASE.linear_parameters - wo
    int8, nf4 = weight_bytes(BASE, "int8"), weight_bytes(BASE, "nf4")
    assert int8 - 4 * (kept + wo) == pytest.approx(quantized, rel=0.01)
    # half a byte each, a constant of a byte per 64 and of four bytes per 256 of those (arXiv 2305.14314)
    assert nf4 - 4 * (kept + wo) == pytest.approx(quantized * (1 / 2 + 1 / 64 + 4 / 64 / 256), rel=0.001)
    assert weight_bytes(BASE, "nf4", "cuda") < nf4


def test_the_parts_are_named_and_add_up() -> None:
    estimate = peak_memory(workload(start="frozen"), choice(held_rank=32))
    assert estimate.total_bytes == sum(estimate.parts.values())
    lora = BASE.lora_parameters(["q", "v"], 8)
    assert estimate.parts["trained factors"] == estimate.parts["gradients"] == 4 * lora
    assert estimate.parts["optimizer state"] == 8 * lora
    assert estimate.parts["held adapter"] == 4 * BASE.lora_parameters(["q", "v"], 32)
    assert estimate.allocated_bytes == estimate.total_bytes - estimate.parts["framework"]
    assert "held adapter" not in peak_memory(workload(), choice()).parts


@settings(max_examples=60, deadline=None)
@given(
    quantization=st.sampled_from(QUANTIZATIONS),
    source=st.integers(16, 1024),
    target=st.integers(4, 256),
    rank=st.sampled_from([2, 8, 32]),
    size=st.integers(1, 4),
    recomputed=st.booleans(),
)
def test_more_of_anything_takes_more_memory(
    quantization: str, source: int, target: int, rank: int, size: int, recomputed: bool
) -> None:
    def total(source: int, target: int, rank: int, size: int) -> int:
        plan = choice(rank=rank, quantization=quantization, micro_batch_size=size, gradient_checkpointing=recomputed)
        return peak_memory(workload(source_tokens=source, target_tokens=target), plan).total_bytes

    here = total(source, target, rank, size)
    assert total(2 * source, target, rank, size) >= here
    assert total(source, 2 * target, rank, size) >= here
    assert total(source, target, 2 * rank, size) >= here
    assert total(source, target, rank, 2 * size) >= here


def test_recomputing_keeps_less_and_moves_as_much() -> None:
    plain, recomputed = choice(), choice(gradient_checkpointing=True)
    assert (
        peak_memory(workload(), recomputed).parts["activations"]
        < peak_memory(workload(), plain).parts["activations"] / 4
    )
    assert activation_bytes(workload(), recomputed) == activation_bytes(workload(), plain)


def test_without_dropout_no_scores_are_kept() -> None:
    from dataclasses import replace

    quiet = workload(layout=replace(BASE, dropout=False))
    assert activation_bytes(quiet, choice()) < 0.6 * activation_bytes(workload(), choice())


def test_private_training_has_a_gradient_for_every_example_of_a_pass() -> None:
    lora = 4 * BASE.lora_parameters(["q", "v"], 8)
    private = peak_memory(workload(private=True), choice(micro_batch_size=4))
    assert private.parts["gradients"] == 5 * lora
    one_by_one = choice(micro_batch_size=4, gradient_checkpointing=True)
    assert peak_memory(workload(private=True), one_by_one).parts["gradients"] == 2 * lora
    assert peak_memory(workload(), choice(micro_batch_size=4)).parts["gradients"] == lora
