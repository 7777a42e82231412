"""The counts themselves are compared with torch's in `benchmarks/flops` and, on the tiny model, in tests/training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.models.flops import Adaptation, ExampleFlops, step_flops
from edgefed.models.layout import FLAN_T5

SMALL = FLAN_T5["google/flan-t5-small"]
EVERYTHING = Adaptation(("q", "k", "v", "o", "wi_0", "wi_1", "wo"), 8, held_rank=4)
LENGTHS = st.lists(st.tuples(st.integers(1, 512), st.integers(1, 128)), max_size=4)


@given(LENGTHS, st.sampled_from([Adaptation(), Adaptation(("v",), 2), EVERYTHING]))
def test_examples_cost_what_batches_of_one_cost(lengths: list[tuple[int, int]], adaptation: Adaptation) -> None:
    each = sum(step_flops(SMALL, adaptation, source, target).model for source, target in lengths)
    assert ExampleFlops(SMALL, adaptation)(lengths) == pytest.approx(each, rel=1e-9)


@given(st.integers(1, 8), st.integers(1, 256), st.integers(1, 64))
def test_a_batch_costs_as_much_as_its_examples(batch: int, source: int, target: int) -> None:
    one, all_ = (step_flops(SMALL, EVERYTHING, source, target, size) for size in (1, batch))
    assert all_.forward == pytest.approx(batch * one.forward)
    assert all_.backward == pytest.approx(batch * one.backward)
    assert all_.recompute == pytest.approx(batch * one.recompute)


def test_the_backward_pass_of_lora_leaves_out_frozen_weights_and_what_lies_below_the_first_factor() -> None:
    full, lora = (step_flops(SMALL, one, 128, 32) for one in (Adaptation(), Adaptation(("q", "v"), 1)))
    assert full.backward == pytest.approx(2 * full.forward)
    assert 0.9 < lora.backward / lora.forward < 1.1  # scores have two inputs that need gradients
    last_only = step_flops(SMALL, Adaptation(("wo",), 1), 128, 32)
    assert last_only.backward < lora.backward  # the first attention has no gradient at all


def test_a_forward_pass_is_about_two_operations_per_weight_and_token() -> None:
    encoder = sum(one.rows * one.columns * one.count for one in SMALL.linears() if one.part == "encoder")
    forward = step_flops(SMALL, Adaptation(), 64, 0).forward
    cross = sum(
        one.rows * one.columns * one.count for one in SMALL.linears() if one.part == "cross" and one.name in "kv"
    )
    assert forward == pytest.approx(2 * 64 * (encoder + cross), rel=0.04)  # the rest is the scores
