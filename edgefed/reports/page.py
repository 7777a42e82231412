"""The page: one self-contained HTML file, without scripts and without anything from elsewhere.

What stands in the records comes from devices, so every text goes through jinja2's escaping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from edgefed import __version__
from edgefed.reports import page_charts as charts
from edgefed.reports.comparison import Comparison, compare
from edgefed.reports.page_tables import Table, comparison_tables, device_table, fleet_table, plan_words, round_table
from edgefed.reports.reference import Reference
from edgefed.reports.report import DeviceReport, Report
from edgefed.reports.utilization import Figure
from edgefed.reports.wording import figure_text, number, quantity, seconds, utc

__all__ = ["render_page"]


def render_page(report: Report, *, references: Sequence[Reference] = (), before: Report | None = None) -> str:
    """Returns the page.

    Args:
        report: of the run.
        references: machines that MFU and η_e are shown beside.
        before: another run to compare with.
    """
    comparison = compare(before, report) if before is not None else None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgefed.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bytes_, energy = charts.traffic_bars(report)
    return environment.get_template("report.html").render(
        version=__version__,
        report=report,
        period=_period(report),
        tiles=_tiles(report),
        references=references,
        fleet=fleet_table(report),
        rounds=round_table(report),
        phases=charts.phase_bars(report),
        timeline=charts.time_lines(report),
        mfu=charts.mfu_bars(report, references),
        eta=charts.eta_bars(report, references),
        memory=charts.memory_bars(report),
        bytes=bytes_,
        energy=energy,
        loss=charts.loss_plot(report),
        sheets=[_sheet(device, report) for device in report.devices],
        comparison=comparison,
        changes=_changes(comparison),
    )


@dataclass(frozen=True, slots=True)
class _Tile:
    """A headline fact."""

    name: str
    value: str
    below: str = ""


@dataclass(frozen=True, slots=True)
class _Sheet:
    """What is told about one device."""

    device: DeviceReport
    plan: str
    facts: Sequence[tuple[str, str]]
    rounds: Table


def _period(report: Report) -> str:
    opened = [one.opened_unix_s for one in report.rounds if one.opened_unix_s is not None]
    return utc(min(opened)) if opened else "no round was opened yet"


def _tiles(report: Report) -> list[_Tile]:
    totals = report.totals
    trained = sum(one.kind == "train" for one in report.rounds)
    losses = [one.loss.value for one in report.rounds if one.loss.value is not None]
    emulated = f"{totals.emulated} of them emulated" if totals.emulated else "none emulated"
    refused = f"{totals.refused} refused" if totals.refused else "none refused"
    return [
        _Tile("devices", str(totals.devices), emulated),
        _Tile("rounds merged", str(trained), "" if totals.wall_s is None else f"in {seconds(totals.wall_s)}"),
        _Tile("updates counted", str(totals.counted), refused),
        _Tile(
            "evaluated loss",
            number(losses[-1]) if losses else "–",
            f"from {number(losses[0])}, nats per token" if losses else "no device evaluated",
        ),
        _Tile("tokens trained", quantity(totals.tokens, ""), f"{seconds(totals.compute_s)} of compute"),
        _Tile(
            "sent by devices", quantity(totals.upload_bytes, "B"), f"broadcast {quantity(totals.broadcast_bytes, 'B')}"
        ),
        _Tile("energy", figure_text(totals.joules, "J"), totals.joules.reason),
    ]


def _privacy_words(device: DeviceReport) -> str:
    return f"ε = {device.epsilon:.3g} at δ = {device.delta:g}, {device.privacy_assumptions}"


def _sheet(device: DeviceReport, report: Report) -> _Sheet:
    use = device.use
    plan = plan_words(device)
    facts = [
        ("plan", f"{plan.text}, {plan.below}; holds rank {device.held_rank} of the global adapter"),
        ("ranks trained", ", ".join(map(str, device.ranks)) or "none"),
        ("data", f"{device.examples:,} examples, {quantity(device.tokens, '')} tokens trained"),
        ("model FLOP rate", _with_reason(use.flops_per_s, "FLOP/s")),
        ("step", f"{_with_reason(use.step_s, 's')}; plan said {_with_reason(use.predicted_step_s, 's')}"),
        (
            "peak memory",
            f"{_with_reason(use.peak_memory_bytes, 'B')}; plan said {_with_reason(use.predicted_peak_bytes, 'B')}",
        ),
        (
            "network",
            f"down {_with_reason(use.download_bytes_per_s, 'B/s')}; up {_with_reason(use.upload_bytes_per_s, 'B/s')}",
        ),
        ("energy sensor", _energy_words(device, report)),
        *([] if device.epsilon is None else [("privacy", _privacy_words(device))]),
    ]
    rows = [row for row in report.device_rounds if row.device == device.device]
    return _Sheet(device, device.plan_reason or "the device gave no reason for its plan", facts, device_table(rows))


def _with_reason(figure: Figure, unit: str) -> str:
    text = figure_text(figure, unit)
    return f"not known ({figure.reason})" if figure.value is None else text


def _energy_words(device: DeviceReport, report: Report) -> str:
    """Returns how joules came about, in the words of the latest record that tells."""
    energies = [
        row.record.use.energy
        for row in report.device_rounds
        if row.device == device.device and row.record is not None and row.record.use is not None
    ]
    if not energies:
        return "power was not sampled"
    energy = energies[-1]
    if energy.joules is None:
        return f"none: {energy.reason or 'nothing measured it'}"
    parts = [energy.method, f"scope: {energy.scope}", f"{energy.measured_share:.0%} of the time measured"]
    return ", ".join([*parts, *(text for text in (energy.coverage, energy.reason) if text)])


def _changes(comparison: Comparison | None) -> list[tuple[str, Table]]:
    return comparison_tables(comparison) if comparison is not None else []
