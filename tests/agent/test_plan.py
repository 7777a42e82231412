from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.agent.options import Limits
from edgefed.agent.plan import CannotTakePart, owners_plan, parts_to_fetch
from edgefed.protocol.messages.manifest import Manifest, Part, Plan
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.rank_layers import boundaries
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, SummarizationTask, Training


def manifest(ranks: list[int], total_rank: int) -> Manifest:
    layers = boundaries(ranks, total_rank)
    return Manifest(parts=[Part(sha256=f"{lo:064x}", size_bytes=1, rank_lo=lo, rank_hi=hi) for lo, hi in layers])


def announced(total_rank: int, **method: Any) -> RoundOpen:
    lora = LoraMethod(**{"ranks": [2, 4, 8], "aggregation": "delta", **method})
    return RoundOpen(
        run="r",
        round=2,
        rounds=3,
        kind="train",
        model=ModelReference(name="m"),
        task=SummarizationTask(),
        method=lora,
        training=Training(),
        evaluation=Evaluation(),
        evaluates=True,
        deadline_s=600.0,
        seed=0,
        manifest=manifest(lora.ranks, total_rank),
    )


@pytest.mark.parametrize(("max_rank", "rank"), [(2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (100, 8)])
def test_a_device_trains_the_largest_offered_rank_that_its_owner_allows(max_rank: int, rank: int) -> None:
    plan = owners_plan(announced(8), Limits(max_rank=max_rank, quantization="nf4"), "no rates")
    assert plan == Plan(rank=rank, held_rank=rank, quantization="nf4")


def test_a_device_below_every_offered_rank_stays_out_and_says_so() -> None:
    with pytest.raises(CannotTakePart, match=r"trains ranks \[2, 4, 8\], and this device allows at most 1"):
        owners_plan(announced(8, ranks=[8, 4, 2]), Limits(max_rank=1, quantization="fp32"), "no rates")


@pytest.mark.parametrize(
    ("total_rank", "max_held_rank", "held_rank"), [(0, 0, 0), (16, 0, 16), (16, 6, 6), (16, 99, 16)]
)
def test_beside_a_frozen_global_adapter_the_owner_says_how_much_is_held(
    total_rank: int, max_held_rank: int, held_rank: int
) -> None:
    plan = owners_plan(
        announced(total_rank, aggregation="frozen_global"),
        Limits(max_rank=4, max_held_rank=max_held_rank, quantization="fp32"),
        "no rates",
    )
    assert (plan.rank, plan.held_rank) == (4, held_rank)


def test_flora_cannot_do_with_a_part_of_the_global_adapter() -> None:
    with pytest.raises(CannotTakePart, match=r"whole global adapter \(rank 16\), and this device holds at most 6"):
        owners_plan(
            announced(16, aggregation="flora"), Limits(max_rank=4, max_held_rank=6, quantization="fp32"), "no rates"
        )
    assert (
        owners_plan(announced(16, aggregation="flora"), Limits(max_rank=4, quantization="fp32"), "no rates").held_rank
        == 16
    )


def test_nothing_is_held_before_anything_was_learned() -> None:
    plan = owners_plan(announced(0), Limits(max_rank=8, quantization="fp32"), "no rates")
    assert (plan.rank, plan.held_rank) == (8, 0)
    assert parts_to_fetch(Manifest(), plan) == []


@pytest.mark.parametrize("limits", [Limits(), Limits(max_rank=8), Limits(quantization="nf4")])
def test_an_owner_who_leaves_it_to_the_plan_hears_why_there_is_none(limits: Limits) -> None:
    with pytest.raises(CannotTakePart, match=r"nothing can be planned: no rates. Or set limits.max_rank and limits.qu"):
        owners_plan(announced(8), limits, "no rates")


@given(
    ranks=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    total_rank=st.integers(0, 40),
    max_rank=st.integers(1, 40),
    max_held_rank=st.integers(0, 40),
    aggregation=st.sampled_from(["delta", "flexlora", "frozen_global", "flora"]),
)
def test_a_plan_keeps_every_limit_and_fetches_what_it_holds(
    ranks: list[int], total_rank: int, max_rank: int, max_held_rank: int, aggregation: str
) -> None:
    round_ = announced(total_rank, ranks=ranks, aggregation=aggregation)
    limits = Limits(max_rank=max_rank, max_held_rank=max_held_rank, quantization="int8")
    try:
        plan = owners_plan(round_, limits, "no rates")
    except CannotTakePart:
        assert min(ranks) > max_rank or (aggregation == "flora" and max_held_rank < total_rank)
        return
    assert plan.rank in ranks
    assert plan.rank <= max_rank
    assert plan.held_rank <= total_rank
    parts = parts_to_fetch(round_.manifest, plan)
    assert parts == round_.manifest.parts[: len(parts)]
    assert sum(part.rank_hi - part.rank_lo for part in parts) >= plan.held_rank
    if parts:
        assert parts[-1].rank_lo < plan.held_rank
