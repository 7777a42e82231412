"""The page's charts: rows of a name, a bar and a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgefed.reports.reference import Reference
from edgefed.reports.report import DeviceReport, Report
from edgefed.reports.svg import Part, axis, bar, line_plot, nice_ticks, time_ticks, timeline
from edgefed.reports.timeline import PHASES, Phase
from edgefed.reports.utilization import Figure, Utilization
from edgefed.reports.wording import number, percent, quantity, seconds, signed_percent, tick, tick_seconds

__all__ = [
    "Bars",
    "Row",
    "eta_bars",
    "loss_plot",
    "memory_bars",
    "mfu_bars",
    "phase_bars",
    "time_lines",
    "traffic_bars",
]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a chart.

    Attributes:
        name: whose.
        bars: one under the other.
        values: the number behind each bar.
        missing: said in place of the bars where there is nothing to draw.
        badge: a mark behind the name.
        reference: this is what the others are compared with.
    """

    name: str
    bars: Sequence[Markup] = ()
    values: Sequence[str] = ()
    missing: str = ""
    badge: str = ""
    reference: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """A chart: its rows, the axis under them, and what the colours mean."""

    rows: Sequence[Row]
    axis: Markup | None = None
    legend: Sequence[tuple[str, str]] = ()

    @property
    def empty(self) -> bool:
        """Whether no row has a bar."""
        return not any(row.bars for row in self.rows)

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Why rows have no bars: each reason once, and whose it is."""
        whose: dict[str, list[str]] = {}
        for row in self.rows:
            if row.missing:
                whose.setdefault(row.missing, []).append(row.name)
        return [
            (reason, "all" if len(names) == len(self.rows) > 1 else ", ".join(names)) for reason, names in whose.items()
        ]


def phase_bars(report: Report) -> Bars:
    """Returns where each device's time went, in seconds over the whole run, all on one scale."""
    longest_s = max((device.phases.total_s for device in report.devices), default=0.0)
    ticks = time_ticks(longest_s)
    full = ticks[-1]
    rows = []
    for device in report.devices:
        total_s = device.phases.total_s
        if not total_s:
            rows.append(_row(device, missing="sent no record"))
            continue
        parts, at = [], 0.0
        for phase in PHASES:
            length = device.phases.seconds(phase)
            title = f"{phase}: {seconds(length)}, {percent(length / total_s)}"
            parts.append(Part(phase, at, length, title))
            at += length
        busy = 1 - device.phases.idle_s / total_s
        label = f"{device.device}: " + ", ".join(f"{p} {seconds(device.phases.seconds(p))}" for p in PHASES)
        rows.append(_row(device, [bar(parts, full, label=label)], [f"{percent(busy)} busy"]))
    return Bars(
        rows,
        axis([(at, tick_seconds(at)) for at in ticks], full),
        [(phase, _PHASE_WORDS[phase]) for phase in PHASES],
    )


_PHASE_WORDS: dict[Phase, str] = {
    "data": "data",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "evaluate": "evaluation",
    "load": "model load",
    "download": "download",
    "upload": "upload",
    "idle": "idle, waiting",
}


def mfu_bars(report: Report, references: Sequence[Reference]) -> Bars:
    """Returns model FLOPs utilization, against the live and the sheet peak, devices beside references."""
    both: Sequence[tuple[str, Callable[[Utilization], Figure]]] = (
        ("live", lambda use: use.mfu_live),
        ("sheet", lambda use: use.mfu_sheet),
    )
    chart = _measure_bars(report, references, both, percent, "MFU")
    return Bars(chart.rows, chart.axis, [("live", "of the measured peak"), ("sheet", "of the data sheet's peak")])


def eta_bars(report: Report, references: Sequence[Reference]) -> Bars:
    """Returns tokens per second per watt, devices beside references."""
    return _measure_bars(report, references, (("eta", lambda use: use.tokens_per_s_per_w),), number, "tokens/s/W")


def _measure_bars(
    report: Report,
    references: Sequence[Reference],
    measures: Sequence[tuple[str, Callable[[Utilization], Figure]]],
    text: Callable[[float], str],
    name: str,
) -> Bars:
    uses = [device.use for device in report.devices] + [reference.use for reference in references]
    known = [value for use in uses for _, read in measures if (value := read(use).value) is not None]
    full, ticks = _scale(max(known, default=0.0))

    def parts(whose: str, use: Utilization, kind: str) -> tuple[list[Markup], list[str], str]:
        bars: list[Markup] = []
        values: list[str] = []
        missing: dict[str, None] = {}
        for measure, read in measures:
            figure = read(use)
            if figure.value is None:
                missing |= dict.fromkeys(figure.reason.split("; "))
                continue
            drawn = Part(f"{measure} {kind}", 0.0, figure.value, f"{measure}: {text(figure.value)}")
            bars.append(bar([drawn], full, label=f"{whose}: {name} {measure} {text(figure.value)}"))
            values.append(text(figure.value))
        return bars, values, "" if bars else "; ".join(missing)

    rows = [
        Row(one.name, *parts(one.name, one.use, "reference"), badge="reference", reference=True) for one in references
    ]
    rows += [_row(device, *parts(device.device, device.use, "")) for device in report.devices]
    return Bars(rows, axis([(at, tick(text(at))) for at in ticks], full) if known else None)


def memory_bars(report: Report) -> Bars:
    """Returns the peak that was planned for and the one that came, per device."""
    pairs = [(device.use.predicted_peak_bytes, device.use.peak_memory_bytes) for device in report.devices]
    known = [figure.value for pair in pairs for figure in pair if figure.value is not None]
    full, ticks = _scale(max(known, default=0.0))
    rows = []
    for device, (predicted, measured) in zip(report.devices, pairs, strict=True):
        bars, values = [], []
        for kind, figure in (("predicted", predicted), ("measured", measured)):
            if figure.value is not None:
                text = quantity(figure.value, "B")
                label = f"{device.device}: {kind} peak {text}"
                bars.append(bar([Part(kind, 0.0, figure.value, f"{kind}: {text}")], full, label=label))
                error = device.use.memory_error.value
                behind = f" ({signed_percent(error)})" if kind == "predicted" and error is not None else ""
                values.append(text + behind)
        reason = predicted.reason if predicted.value is None else measured.reason
        if len(bars) == 1:
            values[0] += f"; {'no prediction' if predicted.value is None else 'not measured'}"
        rows.append(_row(device, bars, values, "" if bars else reason))
    ticks_text = axis([(at, tick(quantity(at, "B"))) for at in ticks], full) if known else None
    return Bars(rows, ticks_text, [("predicted", "predicted by the plan"), ("measured", "measured")])


def traffic_bars(report: Report) -> tuple[Bars, Bars]:
    """Returns bytes per round (broadcast once, sent by all devices) and energy per round."""
    trained = [one for one in report.rounds if one.kind != "evaluate"]
    totals = [(one.broadcast_bytes or 0) + one.upload_bytes for one in trained]
    full, ticks = _scale(float(max(totals, default=0)))
    energies = [one.joules.value for one in trained if one.joules.value is not None]
    full_j, ticks_j = _scale(max(energies, default=0.0))
    bytes_rows, energy_rows = [], []
    for one in trained:
        name = f"round {one.round}"
        out = float(one.broadcast_bytes or 0)
        parts = [
            Part("download", 0.0, out, f"broadcast: {quantity(out, 'B')}"),
            Part("upload", out, float(one.upload_bytes), f"sent by devices: {quantity(one.upload_bytes, 'B')}"),
        ]
        text = f"{quantity(out, 'B')} + {quantity(one.upload_bytes, 'B')}"
        bytes_rows.append(Row(name, [bar(parts, full, label=f"{name}: {text}")], [text]))
        if one.joules.value is None:
            energy_rows.append(Row(name, missing=one.joules.reason))
        else:
            text = quantity(one.joules.value, "J")
            drawn = bar([Part("eta", 0.0, one.joules.value, text)], full_j, label=f"{name}: {text}")
            energy_rows.append(Row(name, [drawn], [text]))
    return (
        Bars(
            bytes_rows,
            axis([(at, tick(quantity(at, "B"))) for at in ticks], full),
            [("download", "broadcast, once for all devices"), ("upload", "sent by the devices")],
        ),
        Bars(energy_rows, axis([(at, tick(quantity(at, "J"))) for at in ticks_j], full_j) if energies else None),
    )


def loss_plot(report: Report) -> tuple[Markup, Markup, Markup] | None:
    """Returns y axis, plot and x axis of the evaluated loss and of the training loss by round; None without any."""
    evaluated = [(float(one.round - 1), one.loss.value) for one in report.rounds if one.loss.value is not None]
    trained = [
        (one.round - 0.5, one.training_loss.value) for one in report.rounds if one.training_loss.value is not None
    ]
    if not evaluated and not trained:
        return None
    last = max((one.round - (one.kind != "train") for one in report.rounds), default=1)
    step = max(1, -(-last // 10))
    return line_plot(
        [("trained", trained), ("evaluated", evaluated)],
        label="loss by merged rounds",
        x_ticks=[float(at) for at in range(0, last + 1, step)] + ([float(last)] if last % step else []),
    )


def time_lines(report: Report) -> Bars:
    """Returns what each device did when, on the aggregator's clock, with a mark at the end of each round."""
    opened = [one.opened_unix_s for one in report.rounds if one.opened_unix_s is not None]
    ends = [one.closed_unix_s for one in report.rounds if one.closed_unix_s is not None]
    ends += [row.received_unix_s for row in report.device_rounds]
    if not opened or not ends:
        return Bars(())
    begin, full = min(opened), max(max(ends) - min(opened), 1e-3)
    marks = [one.closed_unix_s - begin for one in report.rounds if one.closed_unix_s is not None]
    rows = []
    for device in report.devices:
        parts = [
            Part(
                span.phase,
                span.begin_unix_s - begin,
                span.end_unix_s - span.begin_unix_s,
                f"round {row.round}, {span.phase}: {seconds(span.end_unix_s - span.begin_unix_s)}",
            )
            for row in report.device_rounds
            if row.device == device.device
            for span in row.spans
        ]
        label = f"{device.device}: {device.rounds} rounds"
        rows.append(_row(device, [timeline(parts, full, marks, label=label)], [f"{device.rounds} rounds"]))
    ticks = [at for at in time_ticks(full) if at <= full]
    legend = list(_SPAN_WORDS.items())
    return Bars(rows, axis([(at, tick_seconds(at)) for at in ticks], full), legend)


_SPAN_WORDS = {
    "download": "download",
    "load": "model load",
    "evaluate": "evaluation",
    "train": "training",
    "upload": "upload",
    "mark": "end of a round",
}


def _row(device: DeviceReport, bars: Sequence[Markup] = (), values: Sequence[str] = (), missing: str = "") -> Row:
    return Row(device.device, bars, values, missing, badge="emulated" if device.emulated else "")


def _scale(largest: float) -> tuple[float, list[float]]:
    """Returns what the whole width stands for, and where the axis has numbers."""
    ticks = nice_ticks(0.0, largest)
    return (ticks[-1], ticks)
