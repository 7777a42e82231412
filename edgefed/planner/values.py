"""The planner's vocabulary: a machine, a model's layout, the work asked for, and what a plan would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgefed.models.layout import ModelLayout
from edgefed.protocol.tasks import Precision, Quantization

__all__ = ["Candidate", "Choice", "Decision", "Machine", "MemoryEstimate", "TimeEstimate", "Workload"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan may use, measured on the spot or emulated from a board's sheet.

    Attributes:
        name: for people, such as "Jetson Orin Nano 8GB, 15W".
        hardware: where the worker computes.
        memory_kind: `unified` where CPU and GPU share one memory (it is counted once), `discrete` where the GPU has
            its own, `host` where the worker computes on the CPU.
        memory_available_bytes: of the memory that training uses, before any reserve.
        memory_total_bytes: of the same memory.
        flops_per_s: matrix-product rate by the precision of the base weights; one that is missing does not run here.
        memory_bandwidth_bytes_per_s: of the same memory.
        storage_free_bytes: where models and state lie.
        storage_read_bytes_per_s: null where not measured.
        uplink_bytes_per_s: to the aggregator through the broker; null where not measured.
        downlink_bytes_per_s: the other way.
        latency_s: round trip through the broker.
        threads: CPU threads of training.
        compute_capability: of the GPU, such as 8.7; null on CPU.
        unavailable: why a precision does not run here, in words.
        emulated: id of the board that is emulated; null on the real machine.
    """

    name: str
    hardware: Literal["cpu", "cuda"]
    memory_kind: Literal["unified", "discrete", "host"]
    memory_available_bytes: int
    memory_total_bytes: int
    flops_per_s: Mapping[Quantization, float]
    memory_bandwidth_bytes_per_s: float
    storage_free_bytes: int | None = None
    storage_read_bytes_per_s: float | None = None
    uplink_bytes_per_s: float | None = None
    downlink_bytes_per_s: float | None = None
    latency_s: float | None = None
    threads: int = 0
    compute_capability: float | None = None
    unavailable: Mapping[Quantization, str] = field(default_factory=dict)
    emulated: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a plan decides."""

    rank: int
    held_rank: int
    quantization: Quantization
    micro_batch_size: int
    gradient_checkpointing: bool


@dataclass(frozen=True, slots=True)
class Workload:
    """What one round asks of a device, whatever the plan.

    Attributes:
        layout: of the base model.
        target_modules: last path components of the adapted linear layers.
        ranks: the ranks that the federation trains.
        global_rank: rank of the global adapter, which may be held frozen.
        start: from the truncated global adapter, or with fresh factors beside a frozen one.
        batch_size: examples per optimizer step.
        local_steps: optimizer steps per round.
        source_tokens: length of the longest input of a batch, as the device will see it.
        target_tokens: length of the longest target.
        upload_precision: of the factors sent.
        broadcast_precision: of the factors received.
        deadline_s: seconds for download, training and upload; null without one.
    """

    layout: ModelLayout
    target_modules: Sequence[str]
    ranks: Sequence[int]
    global_rank: int
    start: Literal["truncated", "frozen"]
    batch_size: int
    local_steps: int
    source_tokens: int
    target_tokens: int
    upload_precision: Precision = "fp16"
    broadcast_precision: Precision = "fp16"
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Predicted peak bytes of the worker, by part; the parts add up to the total."""

    parts: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Predicted seconds; a transfer over a link that nobody measured is null."""

    step_s: float
    train_s: float
    download_s: float | None
    upload_s: float | None

    @property
    def total_s(self) -> float:
        """Download, training and upload, as far as they are known."""
        return self.train_s + (self.download_s or 0.0) + (self.upload_s or 0.0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan that was looked at: its cost, and why it was not chosen (`lost` is "" for the winner)."""

    choice: Choice
    memory: MemoryEstimate
    time: TimeEstimate
    lost: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome: the winner, everything that was looked at, and the reason in words.

    Attributes:
        chosen: null where nothing fits; `reason` then says what the nearest plan needs.
        candidates: in the order of preference.
        reason: why this one.
        budget_bytes: of memory, after the reserve.
    """

    chosen: Candidate | None
    candidates: Sequence[Candidate]
    reason: str
    budget_bytes: int
