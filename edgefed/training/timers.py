"""A stop-watch for the phases of a training step."""

from __future__ import annotations

import time

import torch

__all__ = ["PhaseTimer"]


class PhaseTimer:
    """Adds up seconds by phase over one step.

    On CUDA the host runs ahead of the device, so phases are bounded by events in the stream, read once at the end of
    the step: waiting for the device at every phase would slow what is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def mark(self, phase: str) -> None:
        """End a phase: what happened since the last mark belongs to it."""
        self._marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """Return seconds by phase, waiting for the device first."""
        if self._cuda:
            torch.cuda.synchronize()
        totals: dict[str, float] = {}
        for (_, begin), (phase, end) in zip(self._marks, self._marks[1:], strict=False):
            totals[phase] = totals.get(phase, 0.0) + _between_s(begin, end)
        return totals

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _between_s(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert isinstance(begin, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    return float(begin.elapsed_time(end)) / 1000.0
