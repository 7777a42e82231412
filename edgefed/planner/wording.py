"""A plan's reasons in words: for the log, for `edgefed plan`, for the report."""

from __future__ import annotations

from collections.abc import Sequence

from edgefed.planner.values import Candidate, Choice, Limits, Machine, TimeEstimate, Workload

__all__ = [
    "in_words",
    "lost_afterwards",
    "lost_for_memory",
    "lost_for_time",
    "readable_bytes",
    "say_why",
    "say_why_none",
]


def readable_bytes(count: float) -> str:
    """Returns a number of bytes for people, such as `1.23 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def in_words(choice: Choice) -> str:
    """Returns a choice for people, such as `rank 8, 16 held, nf4, micro-batch 2, activations recomputed`."""
    held = f", {choice.held_rank} held" if choice.held_rank else ""
    recomputed = ", activations recomputed" if choice.gradient_checkpointing else ""
    return f"rank {choice.rank}{held}, {choice.quantization}, micro-batch {choice.micro_batch_size}{recomputed}"


def lost_for_memory(candidate: Candidate, budget_bytes: int) -> str:
    """Says that memory does not hold it, even with everything done to save it."""
    needed = readable_bytes(candidate.memory.needed_bytes)
    return f"needs {needed} even with {_ways(candidate.choice)}; {readable_bytes(budget_bytes)} may be used"


def lost_for_time(time: TimeEstimate, allowed_s: float, deadline_s: float) -> str:
    """Says that the deadline is too near, and what takes so long."""
    parts = {"download": time.download_s, "training": time.train_s, "upload": time.upload_s}
    spelled = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in parts.items() if seconds)
    allowed = f"{_seconds(allowed_s)} of the {_seconds(deadline_s)} to the deadline may be used"
    return f"takes {_seconds(time.total_s)} ({spelled}); {allowed}"


def lost_afterwards(candidate: Candidate, chosen: Candidate) -> str:
    """Says what is better about the plan that was chosen over one that would do as well."""
    one, other = candidate.choice, chosen.choice
    if one.rank != other.rank:
        return f"fits, but rank {other.rank} does too"
    if one.held_rank != other.held_rank:
        return f"fits, but rank {other.held_rank} of the global adapter can be held"
    if one.quantization == "fp32":
        return f"fits, but {other.quantization} does too, which this hardware multiplies much faster"
    return f"fits, but {other.quantization} does too, and keeps the base more exactly"


def say_why(
    chosen: Candidate, candidates: Sequence[Candidate], workload: Workload, limits: Limits, machine: Machine
) -> str:
    """Returns why this rank, this precision, and this way to save memory."""
    choice = chosen.choice
    reasons = [_why_rank(choice, candidates, workload, limits), _why_precision(choice, candidates, limits, machine)]
    if choice.held_rank < workload.global_rank and workload.start == "frozen":
        reasons.append(f"of the global adapter's rank {workload.global_rank}, {choice.held_rank} can be held")
    asked = workload.micro_batch_size or workload.batch_size
    if choice.micro_batch_size < asked:
        reasons.append(f"micro-batches of {choice.micro_batch_size} instead of {asked} to save memory")
    if choice.gradient_checkpointing and not workload.gradient_checkpointing:
        reasons.append("activations are recomputed to save memory")
    return "; ".join(reasons)


def say_why_none(
    candidates: Sequence[Candidate], workload: Workload, limits: Limits, machine: Machine, budget_bytes: int
) -> str:
    """Returns what stands in the way, and what the nearest plan needs."""
    if not candidates:
        return _nothing_to_look_at(workload, limits)
    running = [one for one in candidates if one.obstacle != "precision"]
    if not running:
        return f"no precision that is allowed runs here: {candidates[0].lost}"
    late = [one for one in running if one.obstacle == "deadline"]
    if late:
        quickest = min(late, key=lambda one: one.time.total_s if one.time else 0.0)
        return f"no plan meets the deadline; the quickest ({in_words(quickest.choice)}) {quickest.lost}"
    nearest = min(running, key=lambda one: one.memory.needed_bytes)
    if nearest.obstacle == "experience":
        return f"nothing lower is left to try: {nearest.lost}"
    needed, budget = readable_bytes(nearest.memory.needed_bytes), readable_bytes(budget_bytes)
    return (
        f"{workload.layout.name} fits no allowed plan on {machine.name}: the nearest ({in_words(nearest.choice)}) "
        f"needs {needed} of memory, and {budget} may be used"
    )


def _nothing_to_look_at(workload: Workload, limits: Limits) -> str:
    if limits.max_rank is not None and min(workload.ranks) > limits.max_rank:
        return (
            f"the federation trains ranks {sorted(workload.ranks)}, and this device's owner allows at most "
            f"{limits.max_rank}"
        )
    return (
        f"this federation needs the whole global adapter (rank {workload.global_rank}), and this device's owner allows "
        f"at most rank {limits.max_held_rank} to be held"
    )


def _why_rank(choice: Choice, candidates: Sequence[Candidate], workload: Workload, limits: Limits) -> str:
    larger = [one for one in candidates if one.choice.rank > choice.rank and one.obstacle != "precision"]
    if larger:
        next_rank = min(one.choice.rank for one in larger)
        nearest = min((one for one in larger if one.choice.rank == next_rank), key=lambda one: one.memory.needed_bytes)
        return f"rank {choice.rank}, for rank {next_rank} ({nearest.choice.quantization}) {nearest.lost}"
    if limits.max_rank is not None and max(workload.ranks) > limits.max_rank:
        return f"rank {choice.rank}, the largest that the owner allows"
    return f"rank {choice.rank}, the largest that the federation trains"


def _why_precision(choice: Choice, candidates: Sequence[Candidate], limits: Limits, machine: Machine) -> str:
    name = choice.quantization
    if len(limits.quantizations) == 1:
        return f"{name}, as the owner has set it"
    better = []
    for one in candidates:
        if one.choice == choice:
            break
        if (one.choice.rank, one.choice.held_rank) == (choice.rank, choice.held_rank):
            better.append(one)
    if better:
        nearest = min(better, key=lambda one: one.memory.needed_bytes)
        other = nearest.choice.quantization
        return f"{name}, for {other} {nearest.lost.removeprefix(other).strip()}"
    if name == "bf16" and machine.native_bf16:
        return "bf16, which this hardware multiplies fastest"
    return f"{name}, the most exact that is allowed"


def _ways(choice: Choice) -> str:
    recomputed = " and activations recomputed" if choice.gradient_checkpointing else ""
    return f"micro-batches of {choice.micro_batch_size}{recomputed}"


def _seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
