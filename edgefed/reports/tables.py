"""A report for programs: CSV with one line per device and round, and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping

import msgspec

from edgefed.reports.comparison import compare
from edgefed.reports.report import DeviceRound, Report
from edgefed.reports.timeline import PHASES
from edgefed.reports.utilization import Figure, Utilization

__all__ = ["CSV_COLUMNS", "render_csv", "render_json"]

_OF_RECORD = (
    "rank",
    "held_rank",
    "quantization",
    "examples",
    "steps",
    "micro_batch_size",
    "gradient_checkpointing",
    "loss_first",
    "loss_mean",
    "loss_last",
    "source_tokens",
    "target_tokens",
    "download_bytes",
    "upload_bytes",
    "model_flops",
    "live_peak_flops_per_s",
    "sheet_peak_flops_per_s",
    "epsilon",
    "delta",
)
_OF_USE = tuple(field for field in Utilization.__struct_fields__)


def _of_record(name: str) -> Callable[[DeviceRound], object]:
    return lambda row: None if row.record is None else getattr(row.record, name)


def _of_use(name: str) -> Callable[[DeviceRound], object]:
    return lambda row: None if row.use is None else getattr(row.use, name).value


def _of_phases(name: str) -> Callable[[DeviceRound], object]:
    return lambda row: None if row.phases is None else getattr(row.phases, name)


_COLUMNS: Mapping[str, Callable[[DeviceRound], object]] = {
    "round": lambda row: row.round,
    "device": lambda row: row.device,
    "outcome": lambda row: row.outcome,
    "outcome_reason": lambda row: row.reason,
    "received_unix_s": lambda row: row.received_unix_s,
    "board": lambda row: row.record and row.record.board,
    "emulated": lambda row: row.record and row.record.emulated,
    **{name: _of_record(name) for name in _OF_RECORD},
    "evaluated_loss": lambda row: row.record and row.record.evaluation and row.record.evaluation.loss,
    **{f"{phase}_s": _of_phases(f"{phase}_s") for phase in PHASES},
    **{name: _of_use(name) for name in _OF_USE},
    "energy_method": lambda row: row.record and row.record.use and row.record.use.energy.method,
    "energy_scope": lambda row: row.record and row.record.use and row.record.use.energy.scope,
    "plan_reason": lambda row: row.record and row.record.plan_reason,
    "unknown": lambda row: "; ".join(_unknown(row)),
}

CSV_COLUMNS: tuple[str, ...] = tuple(_COLUMNS)
"""Units are in the names; shares (mfu_live …) and errors are fractions. `unknown` says why cells are empty."""


def render_csv(report: Report, before: Report | None = None) -> str:
    """Returns one line per device and round, the header first. What is not known is an empty cell.

    With another run to compare with, its lines come first, and a first column `run` has the run's id. Text that a
    spreadsheet would take for a formula gets an apostrophe in front: it comes from devices.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(["run"] if before else []), *CSV_COLUMNS])
    for one in (report,) if before is None else (before, report):
        for row in one.device_rounds:
            first = [one.run] if before else []
            writer.writerow([*first, *(_cell(read(row)) for read in _COLUMNS.values())])
    return out.getvalue()


def render_json(report: Report, before: Report | None = None) -> str:
    """Returns one indented JSON document: a `Report`, or a `Comparison` with another run.

    `edgefed.reports.report` and `edgefed.reports.comparison` say what is in it.
    """
    document = report if before is None else compare(before, report)
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return "" if value is None else value


def _unknown(row: DeviceRound) -> list[str]:
    if row.use is None:
        return ["the device sent no record"]
    figures: dict[str, Figure] = {name: getattr(row.use, name) for name in _OF_USE}
    return [f"{name}: {figure.reason}" for name, figure in figures.items() if figure.value is None]
