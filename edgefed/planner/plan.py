"""Deciding what a device takes on: the largest rank, then the best precision, that fits its memory and the deadline.

Every rank and precision is looked at with all the ways to save memory (smaller micro-batches, recomputed activations);
the fastest way that fits stands for it. All that lost says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edgefed.planner.history import History
from edgefed.planner.memory import peak_memory
from edgefed.planner.seconds import step_seconds, transfer_seconds
from edgefed.planner.values import (
    Candidate,
    Choice,
    Decision,
    Limits,
    Machine,
    MemoryEstimate,
    TimeEstimate,
    Workload,
)
from edgefed.planner.wording import (
    lost_afterwards,
    lost_for_memory,
    lost_for_time,
    readable_bytes,
    say_why,
    say_why_none,
)
from edgefed.protocol.tasks import Quantization

__all__ = ["DEADLINE_MARGIN", "decide", "memory_budget", "quickest_late", "raw_memory"]

DEADLINE_MARGIN = 0.85
"""Share of the deadline that a plan may take by its own prediction."""

_HELD_LEVELS = (32, 16, 8, 4)
"""Ranks that a prefix of the global adapter is cut to: the bounds of the broadcast's rank layers."""


def decide(machine: Machine, workload: Workload, limits: Limits, history: History) -> Decision:
    """Returns the plan for one round, with everything that was looked at.

    Args:
        machine: what may be used.
        workload: what is asked.
        limits: what the owner allows.
        history: what came of earlier plans on this device.
    """
    budget_bytes = memory_budget(machine, limits)
    if full := _disk_is_too_full(machine, workload):
        return Decision(chosen=None, candidates=(), reason=full, budget_bytes=budget_bytes)
    planner = _Planner(machine, workload, history, budget_bytes)
    candidates: list[Candidate] = []
    chosen: Candidate | None = None
    for rank, held_rank, quantization in _groups(machine, workload, limits):
        best = planner.best_of(rank, held_rank, quantization)
        if chosen is not None and not best.lost:
            best = replace(best, obstacle="better", lost=lost_afterwards(best, chosen))
        elif not best.lost:
            chosen = best
        candidates.append(best)
    reason = (
        say_why(chosen, candidates, workload, limits, machine)
        if chosen
        else say_why_none(candidates, workload, limits, machine, budget_bytes)
    )
    return Decision(chosen=chosen, candidates=candidates, reason=reason, budget_bytes=budget_bytes)


def quickest_late(decision: Decision) -> Candidate | None:
    """Returns, of a decision without a choice, the plan that comes nearest to the deadline; None where none is late.

    Before a step was measured, a prediction may be far off: the rates may be those of a machine that was busy.
    """
    late = [one for one in decision.candidates if one.obstacle == "deadline" and one.time is not None]
    return min(late, key=lambda one: one.time.total_s if one.time else 0.0, default=None)


def memory_budget(machine: Machine, limits: Limits) -> int:
    """Returns the bytes that training may take: what is available less the reserve, and no more than the owner says."""
    budget = max(0, machine.memory_available_bytes - machine.reserve_bytes)
    return budget if limits.max_memory_bytes is None else min(budget, limits.max_memory_bytes)


def _disk_is_too_full(machine: Machine, workload: Workload) -> str:
    """Returns in words that a model which is not here yet has no room; "" where it has, or where nobody knows."""
    layout, free = workload.layout, machine.storage_free_bytes
    needed = layout.parameters * 4
    if layout.stored_bytes is not None or free is None or machine.emulated or needed <= free:
        return ""
    return (
        f"{layout.name} takes {readable_bytes(needed)} on disk, and {readable_bytes(free)} are free where it would be "
        "kept: make room, or set HF_HOME to a larger disk"
    )


def _groups(machine: Machine, workload: Workload, limits: Limits) -> Iterator[tuple[int, int, Quantization]]:
    """Yields rank, held rank and precision in the order of preference."""
    for rank in sorted({one for one in workload.ranks if one <= (limits.max_rank or one)}, reverse=True):
        for held_rank in _held_ranks(rank, workload, limits):
            for quantization in _by_quality(machine, limits):
                yield rank, held_rank, quantization


def _held_ranks(rank: int, workload: Workload, limits: Limits) -> Sequence[int]:
    whole = workload.global_rank
    if workload.start == "truncated":
        return (min(rank, whole),)
    most = whole if limits.max_held_rank is None else min(whole, limits.max_held_rank)
    if workload.holds_all:
        return (whole,) if most == whole else ()
    return (most, *(level for level in _HELD_LEVELS if level < most))


def _by_quality(machine: Machine, limits: Limits) -> Sequence[Quantization]:
    """Returns the allowed precisions, the best first.

    bf16 comes first where the hardware multiplies it natively: the factors and their gradients stay fp32, and the base
    was trained in bf16 (arXiv 2210.11416); elsewhere it saves memory only. int8 comes before NF4.
    """
    order: tuple[Quantization, ...] = ("bf16", "fp32") if machine.native_bf16 else ("fp32", "bf16")
    return [one for one in (*order, "int8", "nf4") if one in limits.quantizations]


@dataclass(frozen=True, slots=True)
class _Planner:
    machine: Machine
    workload: Workload
    history: History
    budget_bytes: int

    def best_of(self, rank: int, held_rank: int, quantization: Quantization) -> Candidate:
        """Returns the fastest way that fits, or the one that comes nearest with why it does not fit."""
        ways = [self._estimated(choice) for choice in self._ways(rank, held_rank, quantization)]
        if quantization not in self.machine.flops_per_s:
            why = self.machine.unavailable.get(quantization, "it was not measured")
            return replace(min(ways, key=_bytes), obstacle="precision", lost=f"{quantization} does not run here: {why}")
        ways.sort(key=lambda one: one.time.step_s if one.time else 0.0)
        looked_at = [self._against_memory(way) for way in ways]
        fitting = [way for way in looked_at if way.obstacle == "none"]
        return self._against_deadline(fitting[0]) if fitting else min(looked_at, key=_bytes)

    def _ways(self, rank: int, held_rank: int, quantization: Quantization) -> Iterator[Choice]:
        """Yields the ways to save memory, the federation's own wishes being the least of them."""
        workload = self.workload
        most = workload.micro_batch_size or workload.batch_size
        sizes = [size for size in range(1, most + 1) if workload.batch_size % size == 0]
        for recomputed in (True,) if workload.gradient_checkpointing else (False, True):
            for size in sizes:
                yield Choice(
                    rank=rank,
                    held_rank=held_rank,
                    quantization=quantization,
                    micro_batch_size=size,
                    gradient_checkpointing=recomputed,
                )

    def _estimated(self, choice: Choice) -> Candidate:
        memory = corrected_memory(self.machine, self.workload, choice, self.history)
        time = None
        if choice.quantization in self.machine.flops_per_s:
            time = self._time(choice)
        return Candidate(choice=choice, memory=memory, time=time)

    def _time(self, choice: Choice) -> TimeEstimate:
        workload, machine = self.workload, self.machine
        correction = self.history.time_correction(workload.layout.name, machine.hardware, choice.quantization)
        step_s = correction * step_seconds(machine, workload, choice)
        down_s, up_s = transfer_seconds(machine, workload, choice)
        return TimeEstimate(step_s=step_s, train_s=step_s * workload.local_steps, download_s=down_s, upload_s=up_s)

    def _against_memory(self, candidate: Candidate) -> Candidate:
        if candidate.memory.needed_bytes > self.budget_bytes:
            return replace(candidate, obstacle="memory", lost=lost_for_memory(candidate, self.budget_bytes))
        decided = raw_memory(self.machine, self.workload, candidate.choice).decided_bytes
        failed = self.history.ran_out(self.workload.layout.name, self.machine, decided)
        if failed is None:
            return candidate
        why = f"memory ran out before with {failed.plan}, which needs no more"
        return replace(candidate, obstacle="experience", lost=why)

    def _against_deadline(self, candidate: Candidate) -> Candidate:
        deadline_s, time = self.workload.deadline_s, candidate.time
        if deadline_s is None or time is None or time.total_s <= DEADLINE_MARGIN * deadline_s:
            return candidate
        lost = lost_for_time(time, DEADLINE_MARGIN * deadline_s, deadline_s)
        return replace(candidate, obstacle="deadline", lost=lost)


def corrected_memory(machine: Machine, workload: Workload, choice: Choice, history: History) -> MemoryEstimate:
    """Returns the predicted peak with what this device learned about earlier predictions as a part of its own."""
    estimate = raw_memory(machine, workload, choice)
    factor = history.memory_correction(workload.layout.name, machine.hardware, choice.quantization)
    learned = round((factor - 1.0) * estimate.needed_bytes)
    return MemoryEstimate({**estimate.parts, "learned here": learned}) if learned else estimate


def raw_memory(machine: Machine, workload: Workload, choice: Choice) -> MemoryEstimate:
    """Returns the predicted peak before any correction."""
    return peak_memory(workload, choice, machine.hardware, unified=machine.memory_kind == "unified")


def _bytes(candidate: Candidate) -> int:
    return candidate.memory.needed_bytes
