"""What can be chosen about training, without torch: the configuration and the supervisor read these too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edgefed.errors import ConfigError

__all__ = ["ExamplePrivacy", "LoraOptions", "Quantization", "RankScaling", "TrainOptions", "lora_scale", "sample_rate"]

Quantization = Literal["fp32", "bf16", "int8", "nf4"]
"""How base weights are kept. No fp16: FLAN-T5's activations overflow in it."""

RankScaling = Literal["alpha/r", "alpha/sqrt(r)"]


def lora_scale(alpha: float, rank: int, scaling: RankScaling) -> float:
    """Return s of ΔW = s·B·A: α/r (arXiv 2106.09685), or the rank-stabilised α/√r (arXiv 2312.03732)."""
    return alpha / (rank if scaling == "alpha/r" else math.sqrt(rank))


def sample_rate(batch_size: int, examples: int) -> float:
    """Return the probability that a private step takes an example, of so many on the device."""
    return min(1.0, batch_size / examples)


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """The trained factors of every target module.

    Attributes:
        rank: columns of B and rows of A.
        alpha: numerator of the scale.
        dropout: probability of dropping an input of A while training.
        scaling: how the scale falls with the rank.
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: RankScaling = "alpha/r"

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "rank", self.rank, "at least 1")
        _require(0 < self.alpha < math.inf, "alpha", self.alpha, "a positive number")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        _require(self.scaling in ("alpha/r", "alpha/sqrt(r)"), "scaling", self.scaling, "'alpha/r' or 'alpha/sqrt(r)'")

    @property
    def scale(self) -> float:
        """The factor s of ΔW = s·B·A."""
        return lora_scale(self.alpha, self.rank, self.scaling)


@dataclass(frozen=True, slots=True)
class ExamplePrivacy:
    """DP-SGD: what an example may change of a step, and the noise that hides it.

    Attributes:
        noise_multiplier: standard deviation of the noise on a step's summed gradient, over `clip_norm`.
        clip_norm: Euclidean norm that one example's gradient is scaled down to.
    """

    noise_multiplier: float
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _require(0 < self.noise_multiplier < math.inf, "noise_multiplier", self.noise_multiplier, "a positive number")
        _require(0 < self.clip_norm < math.inf, "clip_norm", self.clip_norm, "a positive number")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """One device's training in one round.

    Attributes:
        steps: optimizer steps.
        batch_size: examples per step.
        micro_batch_size: examples per forward pass, gradients adding up to those of the whole batch; 0 for all at once.
        learning_rate: at the end of the warm-up.
        optimizer: "adamw", or "sgd" without momentum, which keeps no state.
        weight_decay: decoupled for adamw, added to the gradient for sgd.
        schedule: after the warm-up, "constant", or "linear" down to zero.
        warmup_steps: steps in which the learning rate rises linearly.
        max_grad_norm: gradients are scaled down to this Euclidean norm; 0 leaves them alone.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        label_smoothing: share of the target's probability spread over the vocabulary.
        seed: of the data order and of dropout.
        privacy: train by DP-SGD; None trains without. Which examples a step takes, and its noise, are then secret:
            neither follows from `seed`, and `batch_size` is what a step takes on average.
    """

    steps: int
    batch_size: int = 8
    micro_batch_size: int = 0
    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear"] = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    label_smoothing: float = 0.0
    seed: int = 0
    privacy: ExamplePrivacy | None = None

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", self.steps, "at least 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _require(self.micro_batch_size >= 0, "micro_batch_size", self.micro_batch_size, "at least 0")
        _require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a positive number")
        _require(self.optimizer in ("adamw", "sgd"), "optimizer", self.optimizer, "'adamw' or 'sgd'")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "at least 0")
        _require(self.schedule in ("constant", "linear"), "schedule", self.schedule, "'constant' or 'linear'")
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0")
        _require(0 <= self.max_grad_norm < math.inf, "max_grad_norm", self.max_grad_norm, "at least 0")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "linear":
            return self.learning_rate * (self.steps - step) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate


def _require(fine: bool, name: str, found: object, allowed: str) -> None:
    if not fine:
        raise ConfigError(f"{name} is {found!r}; it must be {allowed}")
