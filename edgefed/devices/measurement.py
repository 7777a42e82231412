"""One measured figure: its value and how it came about, or why there is none. Its unit is in the name of its field."""

from __future__ import annotations

import math

import msgspec

__all__ = ["Measurement", "absent", "measured"]


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that says where it comes from.

    Attributes:
        value: null where there is none, never 0 in its place.
        method: how the value came about.
        reason: why there is no value, in words.
    """

    value: float | None = None
    method: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuses a null without a reason, and values that measure nothing."""
        if self.value is None and not self.reason:
            raise ValueError("a figure without a value needs a reason")
        if self.value is not None and not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"{self.value} is no measurement: null with a reason says that there is none")


def measured(value: float, method: str) -> Measurement:
    """Returns a figure that was measured; one that came out as 0 or worse is null and says so."""
    if math.isfinite(value) and value > 0:
        return Measurement(value=value, method=method)
    return absent(f"{method} gave {value:g}")


def absent(reason: str) -> Measurement:
    """Returns a figure that nobody could measure, and why."""
    return Measurement(reason=reason)
