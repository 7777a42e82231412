"""Where a device's time in a round went, as seconds per phase and as spans on the aggregator's clock.

Clocks on boards are often wrong, so only the aggregator's is used: it knows when a round was opened and when an update
was whole. The device's durations are laid out backwards from there; what is left over is idle time.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgefed.protocol.records import RoundRecord

__all__ = ["PHASES", "Phase", "PhaseSeconds", "Span", "add_phases", "phase_seconds", "spans"]

Phase = Literal["data", "forward", "backward", "optimizer", "evaluate", "load", "download", "upload", "idle"]

PHASES: tuple[Phase, ...] = (
    "data",
    "forward",
    "backward",
    "optimizer",
    "evaluate",
    "load",
    "download",
    "upload",
    "idle",
)
"""In the order in which they are drawn."""


class PhaseSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a round, or of several, by what the device did.

    Attributes:
        data_s, forward_s, backward_s, optimizer_s: of the steps.
        evaluate_s: of the received adapter, on held-back examples.
        load_s: loading the base model.
        download_s, upload_s: transfers; an upload whose time is unknown counts as idle.
        idle_s: everything else while the round lasted: waiting for a turn or for others, saving.
    """

    data_s: float = 0.0
    forward_s: float = 0.0
    backward_s: float = 0.0
    optimizer_s: float = 0.0
    evaluate_s: float = 0.0
    load_s: float = 0.0
    download_s: float = 0.0
    upload_s: float = 0.0
    idle_s: float = 0.0

    def seconds(self, phase: Phase) -> float:
        """Returns the seconds of one phase."""
        seconds: float = getattr(self, f"{phase}_s")
        return seconds

    @property
    def total_s(self) -> float:
        """All phases together."""
        return sum(self.seconds(phase) for phase in PHASES)


class Span(msgspec.Struct, frozen=True):
    """Something that a device did from one moment to another, both in Unix seconds of the aggregator's clock."""

    phase: Literal["download", "load", "evaluate", "train", "upload"]
    begin_unix_s: float
    end_unix_s: float


def phase_seconds(record: RoundRecord, window_s: float) -> PhaseSeconds:
    """Returns where the time went; `window_s` is how long the round lasted for this device."""
    busy = PhaseSeconds(
        data_s=record.data_s,
        forward_s=record.forward_s,
        backward_s=record.backward_s,
        optimizer_s=record.optimizer_s,
        evaluate_s=record.evaluation.evaluate_s if record.evaluation else 0.0,
        load_s=record.load_s,
        download_s=record.download_s,
        upload_s=record.upload_s or 0.0,
    )
    return msgspec.structs.replace(busy, idle_s=max(0.0, window_s - busy.total_s))


def add_phases(parts: list[PhaseSeconds]) -> PhaseSeconds:
    """Returns the sum over rounds."""
    return PhaseSeconds(**{f"{phase}_s": sum(part.seconds(phase) for part in parts) for phase in PHASES})


def spans(record: RoundRecord, opened_unix_s: float, received_unix_s: float) -> tuple[Span, ...]:
    """Returns what the device did, in order, laid out backwards from when its update was whole.

    What would have begun before the round was opened is cut there.
    """
    phases = phase_seconds(record, 0.0)
    train_s = max(record.train_s, phases.data_s + phases.forward_s + phases.backward_s + phases.optimizer_s)
    durations = (
        ("upload", phases.upload_s),
        ("train", train_s),
        ("evaluate", phases.evaluate_s),
        ("load", phases.load_s),
        ("download", phases.download_s),
    )
    found: list[Span] = []
    end_s = received_unix_s
    for phase, duration_s in durations:
        begin_s = max(opened_unix_s, end_s - duration_s)
        if begin_s < end_s:
            found.append(Span(phase, begin_s, end_s))  # type: ignore[arg-type]
            end_s = begin_s
    return tuple(reversed(found))
