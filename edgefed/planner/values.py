"""The planner's vocabulary: a machine, the work asked for, the owner's limits, and what a plan would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgefed.models.layout import ModelLayout
from edgefed.protocol.tasks import Precision, Quantization

__all__ = [
    "QUANTIZATIONS",
    "Candidate",
    "Choice",
    "Decision",
    "Hardware",
    "Limits",
    "Machine",
    "MemoryEstimate",
    "Obstacle",
    "TimeEstimate",
    "Workload",
]

Hardware = Literal["cpu", "cuda"]

Obstacle = Literal["none", "precision", "memory", "experience", "deadline", "better"]

QUANTIZATIONS: tuple[Quantization, ...] = ("fp32", "bf16", "int8", "nf4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a plan may use, measured on the spot or emulated from a board's sheet.

    Attributes:
        name: for people, such as `jetson-orin-nano-8gb in 15W (emulated)`.
        hardware: where the worker computes.
        memory_kind: `unified` where CPU and GPU share one memory (it is counted once), `discrete` where the GPU has
            its own, `host` where the worker computes on the CPU.
        memory_available_bytes: of the memory that training uses, before any reserve.
        memory_total_bytes: of the same memory.
        flops_per_s: rate of matrix products by the precision of the base weights; one that is missing does not run.
        memory_bandwidth_bytes_per_s: of the same memory.
        unavailable: why a precision does not run here, in words.
        storage_free_bytes: where models and state lie; null where not known.
        uplink_bytes_per_s: to the aggregator through the broker; null where not measured.
        downlink_bytes_per_s: the other way.
        native_bf16: the hardware multiplies bf16 faster than fp32.
        own_limit: the memory is what a control group leaves to the agent alone.
        emulated: id of the board that is emulated; null on the real machine.
    """

    name: str
    hardware: Hardware
    memory_kind: Literal["unified", "discrete", "host"]
    memory_available_bytes: int
    memory_total_bytes: int
    flops_per_s: Mapping[Quantization, float]
    memory_bandwidth_bytes_per_s: float
    unavailable: Mapping[Quantization, str] = field(default_factory=dict)
    storage_free_bytes: int | None = None
    uplink_bytes_per_s: float | None = None
    downlink_bytes_per_s: float | None = None
    native_bf16: bool = False
    own_limit: bool = False
    emulated: str | None = None

    @property
    def reserve_bytes(self) -> int:
        """What stays free for everything else that runs here.

        A gibibyte or 12 % on a board whose memory the desktop, the camera and the GPU share; half a gibibyte or 5 %
        elsewhere, where what others use is already gone from the available memory; less in a control group of its own.
        """
        least, share = (1 << 30, 0.12) if self.memory_kind == "unified" else (1 << 29, 0.05)
        if self.own_limit and self.memory_kind == "host":
            least, share = 1 << 27, 0.05
        return max(least, round(share * self.memory_total_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one round asks of a device, whatever the plan.

    Attributes:
        layout: of the base model.
        target_modules: last path components of the adapted linear layers.
        ranks: the ranks that the federation trains.
        global_rank: rank of the global adapter; 0 before anything was learned.
        start: from the truncated global adapter, or with fresh factors beside a frozen one.
        holds_all: the frozen global adapter must be held whole.
        batch_size: examples per optimizer step.
        micro_batch_size: examples per forward pass that the federation asks for at most; 0 leaves it to the plan.
        gradient_checkpointing: the federation asks for it.
        local_steps: optimizer steps per round.
        source_tokens: length of the longest input, as the device will see it.
        target_tokens: length of the longest target.
        upload_precision: of the factors sent.
        broadcast_precision: of the factors received.
        private: every example's gradient is made and clipped on its own.
        deadline_s: seconds for download, training and upload; null without one.
    """

    layout: ModelLayout
    target_modules: Sequence[str]
    ranks: Sequence[int]
    global_rank: int = 0
    start: Literal["truncated", "frozen"] = "truncated"
    holds_all: bool = False
    batch_size: int = 8
    micro_batch_size: int = 0
    gradient_checkpointing: bool = False
    local_steps: int = 16
    source_tokens: int = 512
    target_tokens: int = 128
    upload_precision: Precision = "fp16"
    broadcast_precision: Precision = "fp16"
    private: bool = False
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the owner of a device allows.

    Attributes:
        max_rank: largest rank to train; null leaves it to the plan.
        max_held_rank: largest rank of the global adapter to hold frozen; null for all of it.
        quantizations: precisions of the base that may be used; a single one pins it.
        max_memory_bytes: that training may take; null leaves it to the reserve.
    """

    max_rank: int | None = None
    max_held_rank: int | None = None
    quantizations: Sequence[Quantization] = QUANTIZATIONS
    max_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a plan decides. `micro_batch_size` is the number of examples per forward pass."""

    rank: int
    held_rank: int
    quantization: Quantization
    micro_batch_size: int
    gradient_checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Predicted peak bytes of the worker, by part; the parts add up to the total.

    `loading` is what the mapped checkpoint adds while the base is made from it. It shows in the resident set, and the
    kernel takes it back where memory is wanted.
    """

    parts: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    @property
    def needed_bytes(self) -> int:
        """What must be there, or the worker is ended."""
        return self.total_bytes - self.parts.get("loading", 0)

    @property
    def decided_bytes(self) -> int:
        """What of it another plan could save: all but the libraries."""
        return self.needed_bytes - self.parts.get("framework", 0)

    @property
    def allocated_bytes(self) -> int:
        """What torch's allocator sees of it: all but the libraries and the context of the GPU."""
        return self.total_bytes - self.parts.get("framework", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan that was looked at, and what it would cost.

    Attributes:
        choice: the plan.
        memory: its peak.
        time: its seconds; null where its precision does not run.
        obstacle: what stands in its way; "better" where only a better one does.
        lost: the same in words; "" for the winner.
    """

    choice: Choice
    memory: MemoryEstimate
    time: TimeEstimate | None
    obstacle: Obstacle = "none"
    lost: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The outcome: the winner, everything that was looked at, and the reason in words.

    Attributes:
        chosen: null where nothing fits; `reason` then says what the nearest plan needs.
        candidates: one for every rank and precision, in the order of preference.
        reason: why this one, or why none.
        budget_bytes: of memory, after the reserve.
    """

    chosen: Candidate | None
    candidates: Sequence[Candidate]
    reason: str
    budget_bytes: int
