"""What a device has learned about its own plans: how far predictions were off, and where memory ran out.

Kept as JSON by the agent. Predictions are stored as the model makes them, before any correction, so that a correction
never feeds on itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from edgefed.planner.values import Machine
from edgefed.protocol.records import Count, PositiveCount
from edgefed.protocol.tasks import Quantization

__all__ = ["History", "Outcome", "decode_history"]

_KEPT = 64
_RECENT = 8
_MEMORY_BOUNDS = (0.7, 2.0)
_TIME_BOUNDS = (0.1, 20.0)
_MORE_MEMORY = 1.1
_ONE_NOTCH = 0.95


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one plan.

    Attributes:
        model: name of the base model.
        hardware: where it was computed.
        quantization: precision of the base.
        predicted_peak_bytes: by the memory model.
        decided_bytes: of it, what another plan could save.
        predicted_step_s: by the time model.
        peak_bytes: that was measured; null where memory ran out.
        step_s: that was measured; null where no step was finished.
        available_bytes: memory that was available when it was planned.
        plan: in words.
    """

    model: str
    hardware: str
    quantization: Quantization
    predicted_peak_bytes: PositiveCount
    decided_bytes: PositiveCount
    predicted_step_s: Annotated[float, Meta(gt=0)]
    peak_bytes: PositiveCount | None
    step_s: Annotated[float, Meta(gt=0)] | None
    available_bytes: Count
    plan: str = ""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The latest outcomes, oldest first."""

    outcomes: tuple[Outcome, ...] = ()

    def after(self, outcome: Outcome) -> History:
        """Returns the history with one more outcome."""
        return History(outcomes=(*self.outcomes, outcome)[-_KEPT:])

    def memory_correction(self, model: str, hardware: str, quantization: Quantization) -> float:
        """Returns what predicted peaks are multiplied by: the worst ratio seen lately; 1 where nothing was seen."""
        ratios = [
            one.peak_bytes / one.predicted_peak_bytes
            for one in self._of(model, hardware, quantization)
            if one.peak_bytes is not None
        ]
        return _within(max(ratios[-_RECENT:], default=1.0), _MEMORY_BOUNDS)

    def time_correction(self, model: str, hardware: str, quantization: Quantization) -> float:
        """Returns what predicted step seconds are multiplied by: the median of the ratios seen lately.

        A precision that was never tried is taken to be off as the others are.
        """
        own = _time_ratios(self._of(model, hardware, quantization))
        ratios = own or _time_ratios(one for one in self.outcomes if one.hardware == hardware)
        return _within(statistics.median(ratios[-_RECENT:]) if ratios else 1.0, _TIME_BOUNDS)

    def knows_the_time(self, model: str, hardware: str) -> bool:
        """Whether a step of this model was ever measured here."""
        return any(one.step_s is not None and (one.model, one.hardware) == (model, hardware) for one in self.outcomes)

    def ran_out(self, model: str, machine: Machine, decided_bytes: int) -> Outcome | None:
        """Returns the earlier plan that speaks against one: it ran out of memory and needed no more than this one.

        A plan is a notch lower once it needs 5 % less of what plans differ in. With a tenth more memory available than
        then, what ran out may be tried again.
        """
        for one in reversed(self.outcomes):
            same = (one.model, one.hardware) == (model, machine.hardware) and one.peak_bytes is None
            if not same or machine.memory_available_bytes > _MORE_MEMORY * one.available_bytes:
                continue
            if decided_bytes > _ONE_NOTCH * one.decided_bytes:
                return one
        return None

    def _of(self, model: str, hardware: str, quantization: Quantization) -> Iterator[Outcome]:
        for one in self.outcomes:
            if (one.model, one.hardware, one.quantization) == (model, hardware, quantization):
                yield one


def decode_history(payload: bytes) -> History:
    """Returns a history that was kept; an empty one where it cannot be read, for it is only experience."""
    try:
        return msgspec.json.decode(payload, type=History)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return History()


def _time_ratios(outcomes: Iterator[Outcome]) -> list[float]:
    return [one.step_s / one.predicted_step_s for one in outcomes if one.step_s is not None]


def _within(ratio: float, bounds: tuple[float, float]) -> float:
    return min(max(ratio, bounds[0]), bounds[1])
