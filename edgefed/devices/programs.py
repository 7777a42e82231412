"""Small programs of a board's vendor that answer at once or not at all."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

__all__ = ["Run", "run_program"]

Run = Callable[[Sequence[str]], "str | None"]
"""Runs a program; returns what it printed, or None where it is not there, failed or took too long."""

_PATIENCE_S = 1.0


def run_program(command: Sequence[str], *, patience_s: float = _PATIENCE_S) -> str | None:
    """Returns what a program prints; None where it is not there, fails, or takes longer than `patience_s`."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=patience_s, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
