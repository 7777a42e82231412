"""What the sheet of a board is made of: figures that say where they come from, peaks, power modes.

A figure that is wrong in itself is refused when it is made; `boards.Board` refuses figures that contradict each other.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.devices.gpu_rates import RateType

__all__ = ["Figure", "Figures", "Match", "Peaks", "PowerMode", "Status", "Text", "peak_key", "plain_mode_name"]

Status = Literal["verified", "derived", "unverified"]
Text = Annotated[str, Meta(min_length=1)]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number, in the unit that its key names.

    Attributes:
        value: above 0. What a board does not have is left out.
        status: `verified` was read in the source, `derived` follows from such figures by its formula, `unverified` is
            common knowledge that nobody has looked up.
        source: keys of `[sources]`, separated by commas; may be left out where a formula says it all.
        formula: of other figures of the same file, for a derived one.
    """

    value: float
    status: Status
    source: str = ""
    formula: str = ""

    def __post_init__(self) -> None:
        """Refuses what says less than it must."""
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"the value is {self.value:g}; allowed is a number above 0: leave out what is not there")
        if (self.status == "derived") != bool(self.formula):
            raise ValueError("a figure has a formula where its status is derived, and only there")
        if self.status == "verified" and not self.source:
            raise ValueError("a verified figure needs the source that it was read in")


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a board has.

    Attributes:
        memory_bytes: nominal; of the GPU where it has its own.
        user_memory_bytes: what is left of it for user space after carve-outs of firmware and kernel.
        memory_bus_bits: width of the memory bus.
        memory_clock_hz: highest; data moves on both edges.
        bandwidth_bytes_per_s: peak of the memory.
        compute_capability: of the GPU.
        sm_count: all streaming multiprocessors of the module.
        gpu_clock_max_hz: that the peaks hold at.
        cpu_cores: of the processor.
        cpu_clock_hz: highest.
        tdp_w: most that the module or card is made to draw.
        network_bits_per_s: of the wired port of the usual carrier board.
    """

    memory_bytes: Figure
    user_memory_bytes: Figure | None = None
    memory_bus_bits: Figure | None = None
    memory_clock_hz: Figure | None = None
    bandwidth_bytes_per_s: Figure
    compute_capability: Figure | None = None
    sm_count: Figure | None = None
    gpu_clock_max_hz: Figure | None = None
    cpu_cores: Figure | None = None
    cpu_clock_hz: Figure | None = None
    tdp_w: Figure | None = None
    network_bits_per_s: Figure | None = None


class Peaks(msgspec.Struct, frozen=True, kw_only=True):
    """Dense peaks of the whole board, in its fastest mode; int8 counts operations."""

    fp32_flops_per_s: Figure
    bf16_flops_per_s: Figure | None = None
    fp16_flops_per_s: Figure | None = None
    int8_ops_per_s: Figure | None = None

    def figure(self, data_type: RateType) -> Figure | None:
        """Returns the peak of a data type; None where the board has none."""
        found: Figure | None = getattr(self, peak_key(data_type))
        return found


class PowerMode(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the GPU is powered, and how fast it may be.

    Attributes:
        name: as the board's tool has it.
        id: its number there.
        sm_count: streaming multiprocessors that are powered.
        gpu_clock_hz: cap. The clock is the next step of the GPU's table, which may lie a little above.
        memory_clock_hz: cap; left out where there is none.
        budget_w: of the module.
        default: what it is delivered in.
        status, source: of all of these, as in `Figure`.
    """

    name: Text
    id: Annotated[int, Meta(ge=0)] | None = None
    sm_count: Annotated[int, Meta(ge=1)]
    gpu_clock_hz: Annotated[float, Meta(gt=0)]
    memory_clock_hz: Annotated[float, Meta(gt=0)] | None = None
    budget_w: Annotated[float, Meta(gt=0)] | None = None
    default: bool = False
    status: Literal["verified", "unverified"]
    source: str = ""


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """How a machine is recognized; regular expressions that are searched for.

    Attributes:
        device_tree_model: in the model that device tree or firmware names.
        gpu_name: in the name that the driver gives the GPU.
    """

    device_tree_model: str = ""
    gpu_name: str = ""

    def __post_init__(self) -> None:
        """Refuses expressions that are none, and a board that nothing could match."""
        if not (self.device_tree_model or self.gpu_name):
            raise ValueError("device_tree_model or gpu_name must be given: nothing could match otherwise")
        for pattern in (self.device_tree_model, self.gpu_name):
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


def peak_key(data_type: RateType) -> str:
    """Returns the key of `Peaks` that a data type has."""
    return "int8_ops_per_s" if data_type == "int8" else f"{data_type}_flops_per_s"


def plain_mode_name(name: str) -> str:
    """Returns what the names of a power mode have in common: `30W`, `30w` and `MODE_30W` are the same."""
    return name.casefold().removeprefix("mode_")
