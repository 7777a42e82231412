from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.planner.history import History, Outcome
from edgefed.planner.memory import peak_memory
from edgefed.planner.plan import DEADLINE_MARGIN, decide, memory_budget
from edgefed.planner.values import QUANTIZATIONS, Decision, Limits
from edgefed.planner.wording import in_words, readable_bytes
from tests.planner.machines import GIB, choice, machine, workload


def decided(*, limits: Limits | None = None, history: History | None = None, **changes: Any) -> Decision:
    asked = {key: value for key, value in changes.items() if key in workload().__dataclass_fields__}
    had = {key: value for key, value in changes.items() if key not in asked}
    return decide(machine(**had), workload(**asked), limits or Limits(), history or History())


def test_with_plenty_of_everything_the_plan_is_the_largest_and_most_exact() -> None:
    decision = decided(memory_available_bytes=200 * GIB)
    assert decision.chosen is not None
    assert decision.chosen.choice == choice(rank=32, held_rank=32, micro_batch_size=8)
    assert decision.reason == "rank 32, the largest that the federation trains; fp32, the most exact that is allowed"
    assert [one.lost for one in decision.candidates].count("") == 1
    assert len(decision.candidates) == 5 * 4


def test_memory_is_saved_before_precision_and_precision_before_rank() -> None:
    chosen = []
    for gib in (16.0, 4.0, 2.6, 2.0):
        decision = decided(memory_available_bytes=round(gib * GIB), memory_total_bytes=16 * GIB)
        assert decision.chosen is not None
        assert decision.chosen.memory.needed_bytes <= decision.budget_bytes
        chosen.append(decision.chosen.choice)
    assert all(one.rank == 32 for one in chosen[:3])
    peaks = [peak_memory(workload(), one).needed_bytes for one in chosen]
    assert peaks == sorted(peaks, reverse=True)
    assert [QUANTIZATIONS.index(one.quantization) for one in chosen] == sorted(
        QUANTIZATIONS.index(one.quantization) for one in chosen
    )
    assert chosen[0].quantization == "fp32"
    assert chosen[1].micro_batch_size < 8


def test_what_fits_nothing_says_what_the_nearest_plan_needs() -> None:
    decision = decided(memory_available_bytes=GIB, memory_total_bytes=2 * GIB)
    assert decision.chosen is None
    nearest = min(decision.candidates, key=lambda one: one.memory.needed_bytes)
    assert "google/flan-t5-base fits no allowed plan on desk: the nearest (rank 2" in decision.reason
    assert f"needs {readable_bytes(nearest.memory.needed_bytes)} of memory, and 512 MiB may be used" in decision.reason


def test_a_slow_uplink_lowers_the_rank_for_the_deadline() -> None:
    slow = {"uplink_bytes_per_s": 4_000.0, "deadline_s": 600.0, "local_steps": 2}
    decision = decided(**slow)
    assert decision.chosen is not None
    assert decision.chosen.time is not None
    assert decision.chosen.choice.rank < 32
    assert decision.chosen.time.total_s <= DEADLINE_MARGIN * 600
    assert "upload" in decision.reason
    assert "510 s of the 10 min to the deadline may be used" in decision.reason


def test_a_deadline_that_nothing_meets_names_the_quickest() -> None:
    decision = decided(deadline_s=1.0)
    assert decision.chosen is None
    assert decision.reason.startswith("no plan meets the deadline; the quickest (rank 2")


def test_a_precision_that_does_not_run_here_says_why() -> None:
    rates = {"fp32": 2e11}
    decision = decided(flops_per_s=rates, unavailable={"bf16": "no kernel"})
    lost = {one.choice.quantization: one.lost for one in decision.candidates if one.choice.rank == 32}
    assert lost["fp32"] == ""
    assert lost["bf16"] == "bf16 does not run here: no kernel"
    assert lost["nf4"] == "nf4 does not run here: it was not measured"
    only = decided(flops_per_s=rates, limits=Limits(quantizations=("nf4",)))
    assert only.chosen is None
    assert only.reason == "no precision that is allowed runs here: nf4 does not run here: it was not measured"


def test_hardware_that_multiplies_bf16_natively_prefers_it() -> None:
    decision = decided(native_bf16=True, memory_available_bytes=100 * GIB)
    assert decision.chosen is not None
    assert decision.chosen.choice.quantization == "bf16"
    assert "bf16, which this hardware multiplies fastest" in decision.reason


def test_the_owner_caps_and_pins() -> None:
    capped = decided(limits=Limits(max_rank=5, quantizations=("nf4",)))
    assert capped.chosen is not None
    assert (capped.chosen.choice.rank, capped.chosen.choice.quantization) == (4, "nf4")
    assert capped.reason.startswith("rank 4, the largest that the owner allows; nf4, as the owner has set it")
    assert {one.choice.rank for one in capped.candidates} == {4, 2}
    none = decided(limits=Limits(max_rank=1))
    assert none.reason == "the federation trains ranks [2, 4, 8, 16, 32], and this device's owner allows at most 1"
    small = decided(limits=Limits(max_memory_bytes=3 * GIB))
    assert small.budget_bytes == 3 * GIB


def test_a_frozen_global_adapter_is_held_whole_if_it_can_be() -> None:
    whole = decided(start="frozen", global_rank=64, limits=Limits(quantizations=("fp32",)))
    assert whole.chosen is not None
    assert whole.chosen.choice.held_rank == 64
    capped = decided(start="frozen", global_rank=64, limits=Limits(max_held_rank=16))
    assert capped.chosen is not None
    assert capped.chosen.choice.held_rank == 16
    assert "of the global adapter's rank 64, 16 can be held" in capped.reason
    flora = decided(start="frozen", holds_all=True, global_rank=64, limits=Limits(max_held_rank=16))
    assert flora.chosen is None
    assert "needs the whole global adapter (rank 64)" in flora.reason


def test_a_model_that_is_not_here_needs_room_on_the_disk() -> None:
    decision = decided(storage_free_bytes=GIB // 2)
    assert decision.chosen is None
    assert "google/flan-t5-base takes 944 MiB on disk, and 512 MiB are free" in decision.reason
    assert decided(storage_free_bytes=2 * GIB).chosen is not None


def test_what_ran_out_of_memory_is_not_tried_again_until_there_is_more() -> None:
    tight = {"memory_available_bytes": 6 * GIB, "memory_total_bytes": 8 * GIB}
    first = decided(**tight).chosen
    assert first is not None
    history = History()
    seen = [first]
    for _ in range(20):
        last = seen[-1]
        outcome = Outcome(
            model="google/flan-t5-base",
            hardware="cpu",
            quantization=last.choice.quantization,
            predicted_peak_bytes=peak_memory(workload(), last.choice).total_bytes,
            decided_bytes=peak_memory(workload(), last.choice).decided_bytes,
            predicted_step_s=1.0,
            peak_bytes=None,
            step_s=None,
            available_bytes=6 * GIB,
            plan=in_words(last.choice),
        )
        history = history.after(outcome)
        after = decided(**tight, history=history)
        if after.chosen is None:
            break
        assert peak_memory(workload(), after.chosen.choice).decided_bytes <= 0.95 * outcome.decided_bytes
        seen.append(after.chosen)
    assert after.chosen is None, "in the end nothing is left to try"
    assert len(seen) > 5
    ranks = [one.choice.rank for one in seen]
    assert ranks == sorted(ranks, reverse=True)
    assert decided(memory_available_bytes=7 * GIB, memory_total_bytes=8 * GIB, history=history).chosen is not None


def test_experience_corrects_the_prediction() -> None:
    def outcome(ratio: float) -> Outcome:
        return Outcome(
            model="google/flan-t5-base",
            hardware="cpu",
            quantization="fp32",
            predicted_peak_bytes=GIB,
            decided_bytes=GIB,
            predicted_step_s=1.0,
            peak_bytes=round(ratio * GIB),
            step_s=3.0,
            available_bytes=16 * GIB,
        )

    plain = decided().chosen
    corrected = decided(history=History().after(outcome(1.2)).after(outcome(1.1))).chosen
    assert plain is not None
    assert corrected is not None
    assert plain.choice == corrected.choice
    assert plain.time is not None
    assert corrected.time is not None
    assert corrected.time.step_s == pytest.approx(3 * plain.time.step_s)
    assert corrected.memory.needed_bytes == pytest.approx(1.2 * plain.memory.needed_bytes, abs=2)
    assert corrected.memory.parts["learned here"] > 0


@pytest.mark.parametrize(
    ("kind", "total_gib", "reserve_gib"),
    [("unified", 4, 1.0), ("unified", 64, 7.68), ("host", 4, 0.5), ("discrete", 24, 1.2)],
)
def test_something_stays_free(kind: str, total_gib: int, reserve_gib: float) -> None:
    one = machine(memory_kind=kind, memory_total_bytes=total_gib * GIB, memory_available_bytes=total_gib * GIB)
    assert memory_budget(one, Limits()) == pytest.approx((total_gib - reserve_gib) * GIB, rel=1e-6)


def test_in_a_control_group_of_its_own_little_is_kept_free() -> None:
    one = machine(memory_total_bytes=2 * GIB, memory_available_bytes=2 * GIB, own_limit=True)
    assert memory_budget(one, Limits()) == 2 * GIB - GIB // 8


@settings(max_examples=40, deadline=None)
@given(less=st.integers(1, 40), more=st.integers(0, 40), source=st.sampled_from([64, 256, 512]), frozen=st.booleans())
def test_more_memory_never_makes_a_worse_plan(less: int, more: int, source: int, frozen: bool) -> None:
    def plan(gib: int) -> Decision:
        return decided(
            memory_available_bytes=gib * GIB,
            memory_total_bytes=80 * GIB,
            source_tokens=source,
            start="frozen" if frozen else "truncated",
        )

    small, large = plan(less), plan(less + more)
    for decision in (small, large):
        if decision.chosen is not None:
            assert decision.chosen.memory.needed_bytes <= decision.budget_bytes
    if small.chosen is not None:
        assert large.chosen is not None
        a, b = small.chosen.choice, large.chosen.choice
        assert (b.rank, b.held_rank, -QUANTIZATIONS.index(b.quantization)) >= (
            a.rank,
            a.held_rank,
            -QUANTIZATIONS.index(a.quantization),
        )
