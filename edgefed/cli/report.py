"""`edgefed report`: how well every device of a run was used."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgefed.reports.report import Report

__all__ = ["report"]


class _Format(str, Enum):
    HTML = "html"
    CSV = "csv"
    JSON = "json"


def report(
    run: Annotated[Path, typer.Argument(help="The aggregator's directory, of a federation that is over or at work.")],
    format_: Annotated[_Format, typer.Option("--format", "-f", help="A page, a table, or everything.")] = _Format.HTML,
    device: Annotated[str | None, typer.Option(help="Only this device.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Another run's directory, to show this one beside.")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Beside whom MFU and energy efficiency are shown: a bench result, or a report as JSON."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write.  [default: RUN/report.html; stdout for csv and json]"),
    ] = None,
) -> None:
    """Report how well every device of a run was used: time, MFU, tokens per joule, memory, network.

    The page is one file without scripts that loads nothing from elsewhere; print it. CSV has a line per device and
    round with units in the names of its columns, JSON everything with the reason for each figure that is missing. A
    run is only read, and may still be at work.

    Exit codes: 3 for a device or a reference that is not there, 9 for a directory that is no run.

    Examples:
      edgefed report edgefed-run
      edgefed report edgefed-run --device orin-1 --reference h100.json --output orin-1.html
      edgefed report edgefed-run --compare last-week --format json | jq '.changes[] | select(.of == "")'
      edgefed report edgefed-run --format csv > rounds.csv
    """
    from edgefed.cli.output import write_output
    from edgefed.coordinator.run_records import read_run_records
    from edgefed.reports.build import build_report

    if reference is not None and format_ is not _Format.HTML:
        raise typer.BadParameter("--reference is for the page; CSV and JSON hold the run alone")
    this = build_report(read_run_records(run), device=device)
    before = None if compare is None else build_report(read_run_records(compare), device=device)
    text = _rendered(this, before, format_, reference)
    place = output if output is not None or format_ is not _Format.HTML else run / "report.html"
    if place is None:
        typer.echo(text, nl=False)
        return
    write_output(place, text.encode())
    typer.echo(f"wrote {place}")


def _rendered(this: Report, before: Report | None, format_: _Format, reference: Path | None) -> str:
    from edgefed.reports.tables import render_csv, render_json

    if format_ is _Format.CSV:
        return render_csv(this, before)
    if format_ is _Format.JSON:
        return render_json(this, before)
    from edgefed.reports.page import render_page
    from edgefed.reports.reference import read_references

    references = () if reference is None else read_references(reference)
    return render_page(this, references=references, before=before)
