"""What a check finds, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from edgefed.agent.options import AgentOptions
from edgefed.devices.programs import Run, run_program

__all__ = ["Board", "Finding", "Findings", "Status", "note", "ok", "problem", "utc", "worst"]

Status = Literal["ok", "note", "problem"]

_PATIENCE_S = 10.0
_RANKS: tuple[Status, ...] = ("ok", "note", "problem")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    Attributes:
        status: a `problem` stops the agent; a `note` costs something, or will stop it one day.
        seen: what was found, in words.
        remedy: what to do about it; empty where nothing is to be done.
    """

    status: Status
    seen: str
    remedy: str = ""


Findings = Iterator[Finding]


def ok(seen: str) -> Finding:
    """Returns a finding of something as it should be."""
    return Finding(status="ok", seen=seen)


def note(seen: str, remedy: str = "") -> Finding:
    """Returns a finding of something that the owner may want to know or to change."""
    return Finding(status="note", seen=seen, remedy=remedy)


def problem(seen: str, remedy: str) -> Finding:
    """Returns a finding of something that stops the agent."""
    return Finding(status="problem", seen=seen, remedy=remedy)


def worst(findings: tuple[Finding, ...]) -> Status:
    """Returns the status of all of them together."""
    return max((finding.status for finding in findings), key=_RANKS.index, default="ok")


def utc(when: datetime) -> str:
    """Returns a time as findings write it."""
    return f"{when:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """The machine that is looked over, and how.

    Attributes:
        config: the agent.toml.
        options: what it says; None where it cannot be used.
        why_no_options: why it cannot.
        root: of the file system that `proc`, `sys` and `etc` are read from.
        kernel_patience_s: how long the test of a library's kernels may take.
        now: this machine's clock, in UTC with its zone.
        run: runs a program of the system.
    """

    config: Path
    options: AgentOptions | None = None
    why_no_options: str = ""
    root: Path = Path("/")
    kernel_patience_s: float = 180.0
    now: Callable[[], datetime] = field(default=partial(datetime.now, timezone.utc))
    run: Run = field(default=partial(run_program, patience_s=_PATIENCE_S))
