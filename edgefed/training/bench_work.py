"""A micro-benchmark as the worker is asked for it: values and paths, light enough for the command line."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.devices.compute import DataType, MachineProbe
from edgefed.protocol.records import RoundRecord
from edgefed.protocol.tasks import Quantization

__all__ = ["BenchOutcome", "BenchWork", "Shape"]

Shape = Literal["tiny", "flan-t5-small", "flan-t5-base", "flan-t5-large", "flan-t5-xl", "flan-t5-xxl"]
"""FLAN-T5's layouts, and that of the model that ships with edgefed."""

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]


class BenchWork(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of LoRA training on random tokens, timed.

    Attributes:
        directory: of the checkpoint.
        shape: of the checkpoint of random weights that is written to `directory` where nothing is there; None takes
            what is there.
        stored: precision that it is written in.
        quantization: precision of the base.
        target_modules: last path components of the linear layers that get an adapter.
        rank: of the trained factors.
        held_rank: of a frozen branch beside them; 0 for none.
        batch_size: examples per step.
        source_tokens: of every input, its end mark included.
        target_tokens: of every target, its end mark included.
        warmup_steps: steps before those that are measured.
        steps: that are measured.
        gradient_checkpointing: recompute activations in the backward pass.
        threads: CPU threads; 0 leaves the choice to torch.
        hardware: `auto` takes a GPU where there is one.
        seed: of weights, tokens, factors and dropout.
    """

    directory: str
    shape: Shape | None = None
    stored: Literal["fp32", "bf16"] = "fp32"
    quantization: Quantization
    target_modules: list[str] = msgspec.field(default_factory=lambda: ["q", "v"])
    rank: PositiveInt = 8
    held_rank: NonNegativeInt = 0
    batch_size: PositiveInt = 8
    source_tokens: Annotated[int, Meta(ge=2)] = 512
    target_tokens: Annotated[int, Meta(ge=2)] = 128
    warmup_steps: NonNegativeInt = 2
    steps: PositiveInt = 10
    gradient_checkpointing: bool = False
    threads: NonNegativeInt = 0
    hardware: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0


class BenchOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came out.

    Attributes:
        record: of the measured steps, as a device's of a round; bytes and seconds of transfers are none.
        kind: data type that it was computed in.
        machine: what computed, with the rate of matrix products in that type; no other was measured.
        software: versions of what it computed with.
    """

    record: RoundRecord
    kind: DataType
    machine: MachineProbe
    software: str
