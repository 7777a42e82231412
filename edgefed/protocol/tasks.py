"""What a round asks of a device: the model, the task, the method and its numbers, as typed values.

They are read from `federation.toml` and travel unchanged in the announcement of every round. What a federation
exchanges is a tagged union (`method`): LoRA is the first member. A new method adds a struct here and code in `training`
and `aggregation`; the round machine, the chunks and the supervisor pass it on without looking inside.

Evolution rules (they hold for every struct in this package): a new field has a default; a field never changes its type
or unit; a tag is never used twice; readers ignore fields they do not know.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "Aggregation",
    "Evaluation",
    "LoraMethod",
    "Method",
    "ModelReference",
    "Precision",
    "Privacy",
    "Quantization",
    "RankScaling",
    "SummarizationTask",
    "Training",
]

PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, lt=1)]

Aggregation = Literal["flexlora", "delta", "frozen_global", "hetlora", "flora", "fedit"]
Precision = Literal["fp32", "fp16", "int8"]
Quantization = Literal["fp32", "bf16", "int8", "nf4"]
RankScaling = Literal["alpha/r", "alpha/sqrt(r)"]

_LEAST_NOISE = 0.2
"""Of a noise multiplier: a single step over all examples with less than that has ε over 30 at δ = 1e-5."""


class ModelReference(msgspec.Struct, frozen=True, kw_only=True):
    """The base model that everybody starts from.

    Attributes:
        name: a hub id such as `google/flan-t5-small`, or a local directory.
        fingerprint: sha256 over weights, configuration and tokenizer; "" until the aggregator has computed it.
    """

    name: Annotated[str, Meta(min_length=1)]
    fingerprint: str = ""


class SummarizationTask(msgspec.Struct, frozen=True, kw_only=True):
    """Summarize one text field into another.

    Attributes:
        source: name of the field that holds the text.
        target: name of the field that holds its summary.
        prompt: what the model reads; `{source}` stands for the text.
        max_source_tokens: longer inputs are cut there.
        max_target_tokens: longer summaries are cut there, and generation stops there.
    """

    source: Annotated[str, Meta(min_length=1)] = "dialogue"
    target: Annotated[str, Meta(min_length=1)] = "summary"
    prompt: str = "summarize: {source}"
    max_source_tokens: PositiveInt = 512
    max_target_tokens: PositiveInt = 128

    def __post_init__(self) -> None:
        """Refuses a prompt that leaves the text out."""
        if "{source}" not in self.prompt:
            raise ValueError("prompt must contain {source}, the place of the text")


class LoraMethod(msgspec.Struct, frozen=True, kw_only=True, tag="lora"):
    """Low-rank adapters of device-specific rank.

    Attributes:
        aggregation: how updates of different ranks are combined; see `edgefed.aggregation`.
        target_modules: last path components of the linear layers that get an adapter.
        ranks: the ranks a device may train; it takes the largest that its own limit allows.
        server_rank: rank kept in the global adapter; 0 means the largest of `ranks`.
        alpha: LoRA's α; ΔW = s·B·A with s from `rank_scaling`.
        rank_scaling: s = α/r (LoRA) or α/√r (rank-stabilised LoRA, arXiv 2312.03732).
        dropout: probability of dropping an input of A while training.
        upload_precision: of the factors that a device sends; what rounding loses is fed back next time.
        broadcast_precision: of the factors that the aggregator sends.
    """

    aggregation: Aggregation = "delta"
    target_modules: Annotated[list[str], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["q", "v"])
    ranks: Annotated[list[PositiveInt], Meta(min_length=1)] = msgspec.field(default_factory=lambda: [2, 4, 8, 16, 32])
    server_rank: Annotated[int, Meta(ge=0)] = 0
    alpha: PositiveFloat = 16.0
    rank_scaling: RankScaling = "alpha/r"
    dropout: Probability = 0.0
    upload_precision: Precision = "fp16"
    broadcast_precision: Precision = "fp16"

    def __post_init__(self) -> None:
        """Refuses rank lists that the aggregation cannot combine."""
        if self.aggregation == "fedit" and len(set(self.ranks)) != 1:
            raise ValueError(f"fedit averages factors of one rank only, and ranks lists {sorted(set(self.ranks))}")
        if self.server_rank and self.server_rank < max(self.ranks) and self.aggregation in ("hetlora", "fedit"):
            raise ValueError(
                f"{self.aggregation} pads factors to the server's rank, so server_rank "
                f"({self.server_rank}) must not be below the largest of ranks ({max(self.ranks)})"
            )

    @property
    def global_rank(self) -> int:
        """Rank kept in the global adapter (flora grows beyond it)."""
        return self.server_rank or max(self.ranks)

    @property
    def start(self) -> Literal["truncated", "frozen"]:
        """How a device begins: from the global adapter cut to its rank, or with fresh factors beside a frozen one."""
        return "frozen" if self.aggregation in ("frozen_global", "flora") else "truncated"


Method = LoraMethod
"""The tagged union of everything a federation can exchange; one member so far."""


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """Local training in one round.

    Attributes:
        local_steps: optimizer steps per round.
        batch_size: examples per optimizer step.
        micro_batch_size: examples per forward pass, gradients being accumulated; 0 means the whole batch.
        learning_rate: AdamW's.
        weight_decay: AdamW's, on the factors.
        warmup_steps: steps of linear warm-up at the start of each round.
        max_grad_norm: gradients are scaled down to this global norm; 0 leaves them alone.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
    """

    local_steps: PositiveInt = 16
    batch_size: PositiveInt = 8
    micro_batch_size: Annotated[int, Meta(ge=0)] = 0
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: Annotated[int, Meta(ge=0)] = 0
    max_grad_norm: NonNegativeFloat = 1.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuses a micro-batch that does not divide the batch."""
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Evaluation of the received global adapter on each device's held-back examples, before it trains.

    Attributes:
        every: evaluate in every n-th round and after the last one; 0 never evaluates.
        share: share of the device's examples that is held back from training, where it has no file of its own.
        max_examples: at most that many of them are used.
    """

    every: Annotated[int, Meta(ge=0)] = 1
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    max_examples: PositiveInt = 64


class Privacy(msgspec.Struct, frozen=True, kw_only=True):
    """Differential privacy of the examples on a device, against everybody who sees what it sends.

    Each step takes every example with the same probability, scales each one's gradient down to `example_clip_norm`, and
    adds Gaussian noise to their sum (DP-SGD, arXiv 1607.00133, on the LoRA factors alone as in DP-LoRA,
    arXiv 2312.17493). ε is counted over all steps of all rounds, for adding or removing one training example.

    Attributes:
        example_noise_multiplier: standard deviation of the noise over `example_clip_norm`; 0 trains without privacy.
        example_clip_norm: the gradient of an example, of its mean loss per target token, is scaled down to this norm.
        delta: δ of the guarantee; well below one over the number of examples of a device.
        max_epsilon: a device whose ε would pass this takes part in no further round; without it ε is only counted.
    """

    example_noise_multiplier: NonNegativeFloat = 0.0
    example_clip_norm: PositiveFloat = 1.0
    delta: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    max_epsilon: PositiveFloat | None = None

    def __post_init__(self) -> None:
        """Refuses a budget of something that is not counted, and noise too small for ε to mean anything."""
        if self.max_epsilon is not None and not self.example_noise_multiplier:
            raise ValueError("max_epsilon is given, and example_noise_multiplier is 0: without noise there is no ε")
        if 0 < self.example_noise_multiplier < _LEAST_NOISE:
            raise ValueError(
                f"example_noise_multiplier is {self.example_noise_multiplier:g}; below {_LEAST_NOISE} ε says nothing: "
                "take 0, or at least that"
            )
