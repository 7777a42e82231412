"""The page's tables: text in cells, and a numbered note for every figure that is missing or leaves something out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgefed.reports.comparison import Change, Comparison
from edgefed.reports.report import DeviceReport, DeviceRound, Report
from edgefed.reports.run_records import REFUSED
from edgefed.reports.utilization import Figure, Utilization
from edgefed.reports.wording import figure_text, quantity, seconds, signed_percent, utc_time

__all__ = ["Cell", "Notes", "Table", "comparison_tables", "device_table", "fleet_table", "plan_words", "round_table"]

_RATES = ("tokens/s", "MFU live", "MFU sheet", "power", "energy")
"""What `_rates` has a cell for."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: its text, the number of its note (0 for none), a second line, a badge, and a class of the style sheet."""

    text: str
    note: int = 0
    below: str = ""
    badge: str = ""
    kind: str = ""


class Notes:
    """Reasons by number, each said once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, reason: str) -> int:
        """Returns the number of a reason, 0 for none."""
        return self._numbers.setdefault(reason, len(self._numbers) + 1) if reason else 0

    def cell(self, figure: Figure, unit: str, *, kind: str = "") -> Cell:
        """Returns a figure's cell."""
        return Cell(figure_text(figure, unit), self.number(figure.reason), kind=kind)

    @property
    def items(self) -> list[tuple[int, str]]:
        """All of them in order."""
        return [(number, reason) for reason, number in self._numbers.items()]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; its first column is the name of the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Notes = field(default_factory=Notes)


def fleet_table(report: Report) -> Table:
    """Returns a row per device: its plan and what it reached over the run."""
    notes = Notes()
    header = (
        "device", "plan", "updates", *_RATES, "tokens/s/W", "peak memory", "G", "hottest", "throttled",
    )  # fmt: skip
    return Table(header, [_fleet_row(device, notes) for device in report.devices], notes)


def _fleet_row(device: DeviceReport, notes: Notes) -> list[Cell]:
    use = device.use
    refused = f"{device.refused} refused" if device.refused else ""
    return [
        Cell(
            device.device,
            below="" if device.emulated and device.board == device.emulated else device.board or "board not known",
            badge=f"emulates {device.emulated}" if device.emulated else "",
        ),
        plan_words(device),
        Cell(str(device.counted), below=refused),
        *_rates(use, notes),
        notes.cell(use.tokens_per_s_per_w, ""),
        notes.cell(use.peak_memory_bytes, "B"),
        notes.cell(use.granularity, ""),
        notes.cell(use.temperature_max_c, "°C"),
        notes.cell(use.throttled_s, "s", kind="warn" if use.throttled_s.value else ""),
    ]


def _rates(use: Utilization, notes: Notes) -> list[Cell]:
    return [
        notes.cell(use.tokens_per_s, ""),
        notes.cell(use.mfu_live, "%"),
        notes.cell(use.mfu_sheet, "%"),
        notes.cell(use.mean_w, "W"),
        notes.cell(use.joules, "J"),
    ]


def plan_words(device: DeviceReport) -> Cell:
    """Returns rank and precision, and below how the steps are cut."""
    if not device.quantization:
        return Cell("–", below="sent no record")
    details = [
        f"micro-batch {device.micro_batch_size}" if device.micro_batch_size else "whole batch",
        *(["checkpointing"] if device.gradient_checkpointing else []),
    ]
    rank = f"rank {device.rank}" if device.rank else "did not train"
    return Cell(f"{rank} · {device.quantization}", below=", ".join(details))


def round_table(report: Report) -> Table:
    """Returns a row per round."""
    notes = Notes()
    header = (
        "round", "opened", "lasted", "loss before", "training loss", "counted", "late", "refused",
        "taken", "broadcast", "sent", "merge", "energy",
    )  # fmt: skip
    rows = []
    for one in report.rounds:
        opened, closed = one.opened_unix_s, one.closed_unix_s
        rows.append(
            [
                Cell(f"{one.round}" + ("" if one.kind == "train" else f" ({one.kind})")),
                Cell("–" if opened is None else utc_time(opened)),
                Cell("–" if opened is None or closed is None else seconds(closed - opened)),
                notes.cell(one.loss, ""),
                notes.cell(one.training_loss, ""),
                Cell(str(one.counted)),
                Cell(str(one.late)),
                Cell(str(one.refused), kind="warn" if one.refused else ""),
                Cell(quantity(one.download_bytes, "B")),
                Cell("–" if one.broadcast_bytes is None else quantity(one.broadcast_bytes, "B")),
                Cell(quantity(one.upload_bytes, "B")),
                Cell("–" if one.merge_s is None else seconds(one.merge_s)),
                notes.cell(one.joules, "J"),
            ]
        )
    return Table(header, rows, notes)


def device_table(rows: Sequence[DeviceRound]) -> Table:
    """Returns a row per round of one device."""
    notes = Notes()
    header = (
        "round", "update", "loss", "steps", "step", *_RATES, "CPU", "GPU", "down", "up", "G",
    )  # fmt: skip
    return Table(header, [_device_row(row, notes) for row in rows], notes)


def _device_row(row: DeviceRound, notes: Notes) -> list[Cell]:
    outcome = Cell(row.outcome, notes.number(row.reason), kind="warn" if row.outcome in REFUSED else "")
    if row.record is None or row.use is None:
        return [Cell(str(row.round)), outcome, *[Cell("–", notes.number("the device sent no record"))] * 13]
    record, use = row.record, row.use
    why_no_loss = "nothing was trained" if record.epsilon is None else "private training does not tell its loss"
    loss = Figure(record.loss_mean) if record.loss_mean is not None else Figure.unknown(why_no_loss)
    return [
        Cell(str(row.round)),
        outcome,
        notes.cell(loss, ""),
        Cell(str(record.steps)),
        notes.cell(use.step_s, "s"),
        *_rates(use, notes),
        _load(use.cpu_percent, notes),
        _load(use.gpu_percent, notes),
        Cell(quantity(record.download_bytes, "B"), below=seconds(record.download_s)),
        Cell(quantity(record.upload_bytes, "B"), below="" if record.upload_s is None else seconds(record.upload_s)),
        notes.cell(use.granularity, ""),
    ]


def _load(figure: Figure, notes: Notes) -> Cell:
    text = "–" if figure.value is None else f"{figure.value:.0f} %"
    return Cell(text, notes.number(figure.reason))


def comparison_tables(comparison: Comparison) -> list[tuple[str, Table]]:
    """Returns a table of the fleet, a row per figure, and one of the devices that are in both runs, a row each."""
    return [("The fleet", _fleet_changes(comparison)), ("Device by device", _device_changes(comparison))]


def _fleet_changes(comparison: Comparison) -> Table:
    notes = Notes()
    rows = [
        [
            Cell(change.name),
            notes.cell(change.before, change.unit),
            notes.cell(change.after, change.unit),
            _difference(change, notes),
        ]
        for change in comparison.changes
        if not change.of
    ]
    return Table(("figure", "before", "this run", "change"), rows, notes)


def _device_changes(comparison: Comparison) -> Table:
    notes = Notes()
    by_device: dict[str, list[Change]] = {}
    for change in comparison.changes:
        if change.of:
            by_device.setdefault(change.of, []).append(change)
    names = [change.name for change in next(iter(by_device.values()), [])]
    rows = [[Cell(device), *(_changed(one, notes) for one in changes)] for device, changes in by_device.items()]
    return Table(("device", *names), rows, notes)


def _changed(change: Change, notes: Notes) -> Cell:
    """Returns the figure of this run, and below what it was before."""
    if change.after.value is None:
        return notes.cell(change.after, change.unit)
    before = figure_text(change.before, change.unit)
    below = before if change.change.value is None else f"{signed_percent(change.change.value)} ({before})"
    return Cell(figure_text(change.after, change.unit), notes.number(change.change.reason), below=below)


def _difference(change: Change, notes: Notes) -> Cell:
    if change.change.value is None:
        return Cell("–", notes.number(change.change.reason))
    return Cell(signed_percent(change.change.value))
