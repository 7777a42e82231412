"""Every reader of bytes from outside."""

from __future__ import annotations

from pathlib import Path

from tools.fuzzing.aggregator_target import aggregator_target
from tools.fuzzing.engine import Target
from tools.fuzzing.file_targets import MODEL, file_targets
from tools.fuzzing.fleet_targets import fleet_targets
from tools.fuzzing.update_targets import update_targets
from tools.fuzzing.wire_targets import wire_targets

__all__ = ["SLOW", "all_targets"]

SLOW = frozenset({"agent.toml", "federation.toml", "board", "reference"})
"""Readers that take a hundredth of a second and more for an input: a run gives them fewer."""


def all_targets(scratch: Path) -> tuple[Target, ...]:
    """Returns the readers; `scratch` is an empty directory that they may write to."""
    return (
        *wire_targets(scratch),
        aggregator_target(scratch / "aggregator", MODEL),
        *file_targets(scratch),
        *update_targets(scratch / "updates"),
        *fleet_targets(scratch / "fleet"),
    )
