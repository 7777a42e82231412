"""A device's share of one round, as the worker is asked for it: values and paths, light enough for the supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edgefed.data.source import DataSource
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import RoundOpen

__all__ = ["RoundWork", "Suspend", "TrainingSet", "WorkSuspended", "residual_beside"]


def residual_beside(update: Path) -> Path:
    """Returns the file with what rounding will have lost once an update counts; until then nothing makes up for it."""
    return update.with_name(f"{update.name}.residual")


class Suspend(Exception):
    """Raised by a report: stop between two steps, and keep what was done."""


class WorkSuspended(Exception):
    """The work has stopped on request and what was done is kept; the same work, asked for again, goes on from there."""


class TrainingSet(msgspec.Struct, frozen=True, kw_only=True):
    """What a device has to train on.

    Attributes:
        examples: how many, without those held back.
        source_tokens: of the longest input, as training cuts it.
        target_tokens: of the longest target.
    """

    examples: Annotated[int, Meta(ge=1)]
    source_tokens: Annotated[int, Meta(ge=1)]
    target_tokens: Annotated[int, Meta(ge=1)]


class RoundWork(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, with what, and where the result goes.

    Attributes:
        announced: the round.
        device: id of this device.
        data: where its examples are.
        models: local directories by model name.
        plan: rank, held rank and precision of the base.
        parts: files of the global adapter's rank layers, in order.
        output: file that the update is written to.
        residual: file with what rounding lost from the updates that counted so far; read if it is there. What is lost
            once this update counts as well is written to `residual_beside(output)`.
        threads: CPU threads, 0 leaves the choice to torch.
        hardware: `auto`, `cpu` or `cuda`.
    """

    announced: RoundOpen
    device: str
    data: DataSource
    models: dict[str, str]
    plan: Plan
    parts: list[str]
    output: str
    residual: str
    threads: int = 0
    hardware: str = "auto"
