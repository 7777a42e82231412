"""Every reader of bytes from outside."""

from __future__ import annotations

from pathlib import Path

from tools.fuzzing.aggregator_target import aggregator_target
from tools.fuzzing.engine import Target
from tools.fuzzing.file_targets import MODEL, file_targets
from tools.fuzzing.wire_targets import wire_targets

__all__ = ["all_targets"]


def all_targets(scratch: Path) -> tuple[Target, ...]:
    """Returns the readers; `scratch` is an empty directory that they may write to."""
    return (*wire_targets(scratch), aggregator_target(scratch / "aggregator", MODEL), *file_targets(scratch))
