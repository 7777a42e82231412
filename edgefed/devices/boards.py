"""A board as its data sheet has it: figures with their sources, peaks by data type, power modes.

The figures are what somebody wrote down, never what was measured. They bound what a measurement may be, are the peak
that utilization is related to, and are what a machine goes by that plays the board.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.devices.board_parts import Figure, Figures, Match, Peaks, PowerMode, Text, peak_key, plain_mode_name
from edgefed.devices.compute import DataType
from edgefed.devices.emulation import Sheet
from edgefed.devices.formulas import evaluate
from edgefed.devices.gpu_rates import RateType, peak_flops_per_s
from edgefed.errors import ConfigError

__all__ = ["RATE_TYPES", "SUSPICIOUS", "Board", "ModeFigures"]

RATE_TYPES: tuple[RateType, ...] = ("fp32", "bf16", "fp16", "int8")
SUSPICIOUS = 1.3
"""A measured rate above this multiple of the sheet's is wrong, or the sheet is: GPUs boost by less."""

_ROUNDING = 0.01


class ModeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a board has in one power mode, or as a whole where `mode` is null."""

    mode: PowerMode | None
    sm_count: int | None
    gpu_clock_hz: float | None
    bandwidth_bytes_per_s: float
    peaks: Mapping[DataType, float]


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A board's sheet.

    Attributes:
        id: the name of its file without the ending.
        name: as its maker has it.
        memory_kind: as in `MemoryProfile`.
        cpu: cores and kind, in words.
        gpu: as the CUDA runtime names it; empty where it has none.
        dense: that peaks are of dense matrices; sheets often tell the doubled ones of sparse ones.
        accumulate: what products of 16-bit numbers are added up in.
        match: how a machine is recognized as this board.
        figures: what it has.
        peaks: what it can do.
        absent: why a data type has no peak.
        power_modes: in the order of their ids; none where it has none, or none is known.
        sources: what the keys of the figures stand for.
    """

    id: Annotated[str, Meta(pattern="^[a-z0-9-]+$")]
    name: Text
    memory_kind: Literal["unified", "discrete", "host"]
    cpu: str = ""
    gpu: str = ""
    dense: bool
    accumulate: Literal["fp32"]
    match: Match
    figures: Figures
    peaks: Peaks
    absent: dict[RateType, Text] = {}
    power_modes: Annotated[tuple[PowerMode, ...], Meta(max_length=32)] = msgspec.field(default=(), name="power_mode")
    sources: dict[str, Text] = {}

    def __post_init__(self) -> None:
        """Refuses a sheet that contradicts itself."""
        if not self.dense:
            raise ValueError("dense is false; only dense peaks are allowed: halve those of sparse matrices")
        self._check_gpu()
        self._check_peaks()
        self._check_modes()
        self._check_sources()
        self._check_formulas()

    def mode(self, name: str) -> PowerMode:
        """Returns a power mode by its name; `30W`, `30w` and `MODE_30W` are the same.

        Raises:
            ConfigError: there is no such mode.
        """
        for mode in self.power_modes:
            if plain_mode_name(mode.name) == plain_mode_name(name):
                return mode
        known = ", ".join(mode.name for mode in self.power_modes)
        there = f"it has {known}" if known else "its sheet has no power modes"
        raise ConfigError(f"{self.id} has no power mode {name!r}; {there}")

    def in_mode(self, name: str | None) -> ModeFigures:
        """Returns what the board has in a power mode, or as a whole where that is None.

        Peaks are powered SMs times clock cap times operations per clock and SM; the bandwidth follows the memory clock.

        Raises:
            ConfigError: there is no such mode.
        """
        figures = self.figures
        bandwidth = figures.bandwidth_bytes_per_s.value
        if name is None:
            peaks = ((kind, self.peaks.figure(kind)) for kind in RATE_TYPES)
            return ModeFigures(
                mode=None,
                sm_count=None if figures.sm_count is None else int(figures.sm_count.value),
                gpu_clock_hz=None if figures.gpu_clock_max_hz is None else figures.gpu_clock_max_hz.value,
                bandwidth_bytes_per_s=bandwidth,
                peaks={kind: figure.value for kind, figure in peaks if figure is not None},
            )
        mode = self.mode(name)
        if mode.memory_clock_hz is not None and figures.memory_clock_hz is not None:
            bandwidth *= mode.memory_clock_hz / figures.memory_clock_hz.value
        return ModeFigures(
            mode=mode,
            sm_count=mode.sm_count,
            gpu_clock_hz=mode.gpu_clock_hz,
            bandwidth_bytes_per_s=bandwidth,
            peaks=dict(self._peaks_in(mode)),
        )

    def sheet(self, mode: str | None = None) -> Sheet:
        """Returns what a machine goes by that plays this board.

        Args:
            mode: of its power modes; by default the one that it is delivered in, and the whole board where that is not
                known.

        Raises:
            ConfigError: there is no such mode.
        """
        name = mode or next((each.name for each in self.power_modes if each.default), None)
        now, figures = self.in_mode(name), self.figures
        capability = figures.compute_capability
        return Sheet(
            board=self.id,
            power_mode=now.mode.name if now.mode else None,
            memory_kind=self.memory_kind,
            memory_total_bytes=int((figures.user_memory_bytes or figures.memory_bytes).value),
            memory_bandwidth_bytes_per_s=now.bandwidth_bytes_per_s,
            flops_per_s=now.peaks,
            gpu_name=self.gpu or None,
            compute_capability=None if capability is None else capability.value,
            sm_count=now.sm_count,
            gpu_clock_hz=now.gpu_clock_hz,
            cores=1 if figures.cpu_cores is None else int(figures.cpu_cores.value),
        )

    def sanity(self, data_type: RateType, measured_flops_per_s: float, mode: str | None = None) -> str | None:
        """Returns in words why a measured rate cannot be true of this board; None where it can.

        Args:
            data_type: that was multiplied.
            measured_flops_per_s: the rate.
            mode: that it was measured in; None takes the whole board's peak.

        Raises:
            ConfigError: there is no such mode.
        """
        peak = self.in_mode(mode).peaks.get(data_type)
        if peak is None or measured_flops_per_s <= SUSPICIOUS * peak:
            return None
        where = f"{self.id} in {mode}" if mode else self.id
        return (
            f"{data_type} was measured at {measured_flops_per_s:.3g} FLOP/s, {measured_flops_per_s / peak:.1f} times "
            f"the peak of {where} ({peak:.3g}): this is another board, another power mode, or a wrong measurement"
        )

    def named_figures(self) -> Iterator[tuple[str, Figure]]:
        """Yields every figure with its key, peaks too."""
        for table in (self.figures, self.peaks):
            for key in table.__struct_fields__:
                figure = getattr(table, key)
                if figure is not None:
                    yield key, figure

    def _peaks_in(self, mode: PowerMode) -> Iterator[tuple[RateType, float]]:
        capability = self.figures.compute_capability
        assert capability is not None, "a board with power modes has a GPU: that was checked"
        for kind in RATE_TYPES:
            peak = peak_flops_per_s(mode.sm_count, mode.gpu_clock_hz, capability.value, kind)
            if peak is not None and kind not in self.absent:
                yield kind, peak

    def _check_gpu(self) -> None:
        keys = ("compute_capability", "sm_count", "gpu_clock_max_hz")
        given = [key for key in keys if getattr(self.figures, key) is not None]
        if given and (len(given) < len(keys) or not self.gpu):
            raise ValueError(f"a board with a GPU gives gpu and figures {', '.join(keys)}; here are {', '.join(given)}")
        if bool(self.gpu) != bool(given) or (self.memory_kind == "host") == bool(self.gpu):
            raise ValueError("gpu, its figures, and a memory_kind other than host belong together")

    def _check_peaks(self) -> None:
        for kind in RATE_TYPES:
            if (self.peaks.figure(kind) is None) != (kind in self.absent):
                raise ValueError(f"{kind} is given in peaks as {peak_key(kind)}, or else in absent with the reason")

    def _check_modes(self) -> None:
        names = [plain_mode_name(mode.name) for mode in self.power_modes]
        if len(set(names)) < len(names):
            raise ValueError("two power modes have the same name")
        if [mode.default for mode in self.power_modes].count(True) > 1:
            raise ValueError("two power modes are the default")
        for mode in self.power_modes:
            for key, limit in (
                ("sm_count", self.figures.sm_count),
                ("gpu_clock_hz", self.figures.gpu_clock_max_hz),
                ("memory_clock_hz", self.figures.memory_clock_hz),
            ):
                found = getattr(mode, key)
                if found is not None and (limit is None or found > limit.value):
                    raise ValueError(f"power mode {mode.name} has a {key} of {found:g}, more than the board")

    def _check_sources(self) -> None:
        cited = [(key, figure.status, figure.source) for key, figure in self.named_figures()]
        cited += [(f"power mode {mode.name}", mode.status, mode.source) for mode in self.power_modes]
        used = set()
        for where, status, source in cited:
            keys = {key.strip() for key in source.split(",")} - {""}
            if status == "verified" and not keys:
                raise ValueError(f"{where} is verified and names no source")
            if unknown := sorted(keys - set(self.sources)):
                raise ValueError(f"{where} cites {', '.join(unknown)}, which [sources] does not explain")
            used |= keys
        if unused := sorted(set(self.sources) - used):
            raise ValueError(f"[sources] explains {', '.join(unused)}, which nothing cites")

    def _check_formulas(self) -> None:
        values = {key: figure.value for key, figure in self.named_figures()}
        for key, figure in self.named_figures():
            if not figure.formula:
                continue
            try:
                result = evaluate(figure.formula, values)
            except ValueError as error:
                raise ValueError(f"the formula of {key}: {error}") from None
            if not math.isclose(result, figure.value, rel_tol=_ROUNDING):
                raise ValueError(f"{key} is {figure.value:g}, and its formula {figure.formula} gives {result:g}")
