"""What one optimizer step was, and a round's steps in sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["StepRecord", "TrainResult", "summed"]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: from 0.
        loss: mean over the step's target tokens, nats (smoothed where label smoothing is on).
        source_tokens: real tokens read, prompt included.
        target_tokens: real tokens to be written.
        model_flops: analytic, forward and backward, for real tokens.
        gradient_norm: Euclidean, before clipping.
        data_s: tokenising, collating, moving to the device.
        forward_s: forward passes of all micro-batches.
        backward_s: backward passes.
        optimizer_s: clipping, the step, and clearing gradients.
    """

    step: int
    loss: float
    source_tokens: int
    target_tokens: int
    model_flops: float
    gradient_norm: float
    data_s: float
    forward_s: float
    backward_s: float
    optimizer_s: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A round's training in sums.

    Attributes:
        steps: optimizer steps.
        examples: examples seen, repeats included.
        first_loss: of the first step, nats per target token.
        last_loss: of the last step.
        mean_loss: over the steps.
        source_tokens: real tokens read.
        target_tokens: real tokens to be written.
        model_flops: analytic, see `StepRecord`.
        data_s: seconds of this phase, as are the next three.
        forward_s: see `StepRecord`.
        backward_s: see `StepRecord`.
        optimizer_s: see `StepRecord`.
    """

    steps: int
    examples: int
    first_loss: float
    last_loss: float
    mean_loss: float
    source_tokens: int
    target_tokens: int
    model_flops: float
    data_s: float
    forward_s: float
    backward_s: float
    optimizer_s: float


def summed(records: Sequence[StepRecord], batch_size: int) -> TrainResult:
    """Return the sums of a training; there is at least one step."""
    return TrainResult(
        steps=len(records),
        examples=len(records) * batch_size,
        first_loss=records[0].loss,
        last_loss=records[-1].loss,
        mean_loss=sum(r.loss for r in records) / len(records),
        source_tokens=sum(r.source_tokens for r in records),
        target_tokens=sum(r.target_tokens for r in records),
        model_flops=sum(r.model_flops for r in records),
        data_s=sum(r.data_s for r in records),
        forward_s=sum(r.forward_s for r in records),
        backward_s=sum(r.backward_s for r in records),
        optimizer_s=sum(r.optimizer_s for r in records),
    )
