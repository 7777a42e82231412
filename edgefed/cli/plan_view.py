"""A decision as people read it and as programs do: the choice, its memory by part, and all that lost."""

from __future__ import annotations

import dataclasses
from typing import Any

import typer

from edgefed.cli.output import write_table
from edgefed.planner.values import Candidate, Decision, Machine, Workload
from edgefed.planner.wording import in_words, readable_bytes

__all__ = ["plan_document", "print_plan"]

_HEADER = ("rank", "held", "precision", "micro-batch", "recompute", "peak", "step", "down", "up", "outcome")


def plan_document(machine: Machine, workload: Workload, decision: Decision) -> dict[str, Any]:
    """Returns a decision as JSON has it; bytes and seconds in the names."""
    return {
        "model": workload.layout.name,
        "machine": machine.name,
        "emulated": machine.emulated,
        "memory_available_bytes": machine.memory_available_bytes,
        "reserve_bytes": machine.reserve_bytes,
        "budget_bytes": decision.budget_bytes,
        "deadline_s": workload.deadline_s,
        "chosen": _candidate(decision.chosen) if decision.chosen else None,
        "reason": decision.reason,
        "candidates": [_candidate(one) for one in decision.candidates],
    }


def print_plan(machine: Machine, workload: Workload, decision: Decision) -> None:
    """Writes a decision to stdout."""
    texts = f"{workload.source_tokens} + {workload.target_tokens} tokens, {workload.batch_size} examples a step"
    typer.echo(f"{workload.layout.name} on {machine.name}: {texts}")
    typer.echo(
        f"memory: {readable_bytes(machine.memory_available_bytes)} available, "
        f"{readable_bytes(decision.budget_bytes)} may be used"
    )
    chosen = decision.chosen
    if chosen is not None:
        typer.echo(f"plan: {in_words(chosen.choice)}")
        typer.echo(f"because: {decision.reason}")
        typer.echo("")
        parts = chosen.memory.parts
        rows = [*((name, readable_bytes(size)) for name, size in parts.items())]
        write_table(("peak memory of", ""), [*rows, ("all", readable_bytes(chosen.memory.total_bytes))])
        typer.echo("")
    if decision.candidates:
        write_table(_HEADER, [_row(one) for one in decision.candidates])


def _row(candidate: Candidate) -> tuple[object, ...]:
    choice, time = candidate.choice, candidate.time
    return (
        choice.rank,
        choice.held_rank,
        choice.quantization,
        choice.micro_batch_size,
        "yes" if choice.gradient_checkpointing else "no",
        readable_bytes(candidate.memory.needed_bytes),
        _seconds(time.step_s if time else None),
        _seconds(time.download_s if time else None),
        _seconds(time.upload_s if time else None),
        candidate.lost or "chosen",
    )


def _seconds(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds:.3g} s"


def _candidate(candidate: Candidate) -> dict[str, Any]:
    time = candidate.time
    return {
        **dataclasses.asdict(candidate.choice),
        "needed_bytes": candidate.memory.needed_bytes,
        "peak_bytes": candidate.memory.total_bytes,
        "peak_bytes_by_part": dict(candidate.memory.parts),
        "step_s": time.step_s if time else None,
        "train_s": time.train_s if time else None,
        "download_s": time.download_s if time else None,
        "upload_s": time.upload_s if time else None,
        "lost": candidate.lost,
    }
