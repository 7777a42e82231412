"""What a device tells about a round it worked in: losses, step phases, bytes. The aggregator keeps it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edgefed.devices.usage import HardwareUse

__all__ = ["MAX_STEP_RECORDS", "EvaluationRecord", "RoundRecord", "StepRecord"]

MAX_STEP_RECORDS = 256
"""More steps than this are thinned evenly before they travel, so that a record always fits one message."""

Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]  # what every reader of JSON, SQLite and a double can hold
PositiveCount = Annotated[int, Meta(ge=1, le=2**53 - 1)]


class StepRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One optimizer step: seconds per phase, loss in nats per target token, and tokens without padding."""

    loss: float
    data_s: Seconds
    forward_s: Seconds
    backward_s: Seconds
    optimizer_s: Seconds
    source_tokens: Count
    target_tokens: Count


class EvaluationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The received global adapter on the device's held-back examples.

    Attributes:
        loss: mean nats per target token.
        target_tokens: how many tokens that mean is over, which is its weight.
        examples: how many examples were evaluated.
        evaluate_s: seconds that took.
    """

    loss: float
    target_tokens: Count
    examples: Count
    evaluate_s: Seconds


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one device did in one round.

    Attributes:
        device: its id.
        round: the round.
        rank: trained rank; 0 where nothing was trained.
        held_rank: rank of the global adapter that it started from or held.
        quantization: precision of the base weights.
        examples: training examples on the device.
        steps: optimizer steps done.
        loss_first: loss of the first step, before the round's learning.
        loss_mean: mean loss over the steps.
        loss_last: loss of the last step.
        data_s, forward_s, backward_s, optimizer_s: totals over all steps.
        train_s: wall seconds of the training call.
        load_s: wall seconds of loading the base model, 0 in a warm worker.
        download_bytes: broadcast bytes that arrived for this round, repairs included.
        download_s: seconds from the first request to the last byte.
        upload_bytes: size of the update.
        upload_s: seconds from the grant to the last byte, as the aggregator saw them.
        peak_resident_bytes: the worker's largest resident set so far.
        peak_memory_bytes: most that training used: of the CUDA allocator on a GPU, else the resident set.
        predicted_peak_bytes: what the plan expected of `peak_memory_bytes`; null without a plan.
        predicted_step_s: what the plan expected of a step.
        micro_batch_size: examples per forward pass; 0 is the whole batch.
        gradient_checkpointing: activations were recomputed in the backward pass.
        plan_reason: why this rank and this precision, in words.
        model_flops: analytic, of all steps, for real tokens: padding and recomputation are not useful work.
        live_peak_flops_per_s: matrix-product rate that was measured on the spot in the precision of the computation.
        sheet_peak_flops_per_s: what the board's sheet says for the live power mode.
        board: id of the board whose sheet that is.
        emulated: id of the board that was emulated while planning; null on the real machine.
        use: energy, load and heat while the device worked on the round.
        step_records: the steps, evenly thinned to `MAX_STEP_RECORDS`.
        evaluation: of the received global adapter, where the round asked for it.
        epsilon: of the device's examples over all rounds so far, this one included; null where nothing was private.
        delta: δ that it holds at.
        privacy_assumptions: what that guarantee stands on and what it leaves out, in words.
    """

    device: str
    round: Count
    rank: Count
    held_rank: Count
    quantization: str
    examples: Count
    steps: Count = 0
    loss_first: float | None = None
    loss_mean: float | None = None
    loss_last: float | None = None
    data_s: Seconds = 0.0
    forward_s: Seconds = 0.0
    backward_s: Seconds = 0.0
    optimizer_s: Seconds = 0.0
    train_s: Seconds = 0.0
    load_s: Seconds = 0.0
    source_tokens: Count = 0
    target_tokens: Count = 0
    download_bytes: Count = 0
    download_s: Seconds = 0.0
    upload_bytes: Count = 0
    upload_s: Seconds | None = None
    peak_resident_bytes: Count | None = None
    peak_memory_bytes: Count | None = None
    predicted_peak_bytes: Count | None = None
    predicted_step_s: Seconds | None = None
    micro_batch_size: Count = 0
    gradient_checkpointing: bool = False
    plan_reason: str = ""
    model_flops: Annotated[float, Meta(ge=0)] | None = None
    live_peak_flops_per_s: Annotated[float, Meta(gt=0)] | None = None
    sheet_peak_flops_per_s: Annotated[float, Meta(gt=0)] | None = None
    board: str | None = None
    emulated: str | None = None
    use: HardwareUse | None = None
    step_records: Annotated[list[StepRecord], Meta(max_length=MAX_STEP_RECORDS)] = []
    evaluation: EvaluationRecord | None = None
    epsilon: Annotated[float, Meta(ge=0)] | None = None
    delta: Annotated[float, Meta(gt=0, lt=1)] | None = None
    privacy_assumptions: Annotated[str, Meta(max_length=1024)] = ""
