"""How far an update is, as people and programs read it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from edgefed.cli.fleet_view import human_bytes
from edgefed.cli.output import write_json, write_table
from edgefed.coordinator.rollout import Progress, Rollout, in_order
from edgefed.coordinator.rollout_desk import read_progress, read_rollout
from edgefed.coordinator.run_directory import is_at_work
from edgefed.errors import UpdateError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["COLUMNS", "describe", "follow", "rows", "show_once", "tell_what_becomes_of_it"]

COLUMNS = ("device", "state", "received", "reason")
_LOOK_EVERY_S = 0.5
_HINT_AFTER_S = 5.0


def describe(rollout: Rollout, progress: Progress) -> str:
    """Returns one line: release, stage, how many of whom."""
    steps = progress.steps.values()
    counts = {state: sum(step.state == state for step in steps) for state in dict.fromkeys(one.state for one in steps)}
    stage = f"stage {progress.stage + 1} of {len(rollout.stages)} ({rollout.stages[progress.stage]} %)"
    told = [f"{count} {state}" for state, count in counts.items()] or ["nobody was offered it yet"]
    end = [progress.outcome] if progress.outcome else []
    reason = [progress.reason] if progress.reason else []
    return " · ".join([f"release {rollout.bundles[0].name}", stage, *told, *end, *reason])


def rows(rollout: Rollout, progress: Progress) -> list[tuple[str, ...]]:
    """Returns a row of text per device that was offered the release, in the order of the stages."""
    sizes = {bundle.sha256: bundle.size_bytes for bundle in rollout.bundles}
    return [
        (
            device,
            step.state,
            f"{human_bytes(step.received_bytes)} of {human_bytes(sizes[step.bundle])}"
            if step.state == "fetching" and step.bundle in sizes
            else "",
            step.reason,
        )
        for device, step in sorted(progress.steps.items(), key=lambda pair: in_order(pair[0]))
    ]


def show_once(run: Path, rollout: Rollout, *, as_json: bool) -> None:
    """Writes how far it is now."""
    progress = read_progress(run, rollout)
    if as_json:
        write_json(_document(rollout, progress))
        return
    typer.echo(describe(rollout, progress))
    write_table(COLUMNS, rows(rollout, progress))


def tell_what_becomes_of_it(run: Path, rollout: Rollout) -> None:
    """Says on stderr that nobody carries it out now, or that it is being stopped; nothing where it goes its way."""
    if hint := _standstill(run, rollout, read_progress(run, rollout)):
        typer.echo(hint, err=True)


def follow(run: Path, rollout: Rollout, *, as_json: bool) -> None:
    """Shows what happens until the update is over; ends with the table, or with one JSON document.

    Raises:
        UpdateError: it has failed, was stopped, or another one took its place.
    """
    drawn = sys.stdout.isatty() and not as_json
    progress = _draw(run, rollout) if drawn else _log_lines(run, rollout, quiet=as_json)
    if as_json:
        write_json(_document(rollout, progress))
    elif not sys.stdout.isatty():
        write_table(COLUMNS, rows(rollout, progress))
    if progress.outcome != "done":
        raise UpdateError(describe(rollout, progress))
    typer.echo(describe(rollout, progress), err=True)


def _document(rollout: Rollout, progress: Progress) -> dict[str, Any]:
    return {"update": msgspec.to_builtins(rollout), "progress": msgspec.to_builtins(progress)}


def _changes(run: Path, rollout: Rollout) -> Iterator[Progress]:
    """Yields the progress whenever it is another, until it is over."""
    latest: Progress | None = None
    quiet_since_s, hinted = time.monotonic(), False
    while latest is None or not latest.outcome:
        present = read_rollout(run)
        if present is None or present.id != rollout.id:
            raise UpdateError("another update has taken the place of this one")
        progress = read_progress(run, rollout)
        if progress != latest:
            latest = progress
            quiet_since_s, hinted = time.monotonic(), False
            yield progress
            continue
        quiet = time.monotonic() - quiet_since_s > _HINT_AFTER_S
        if not hinted and (hint := _standstill(run, present, progress) or (_hint(progress) if quiet else "")):
            hinted = True
            typer.echo(hint, err=True)
        time.sleep(_LOOK_EVERY_S)


def _standstill(run: Path, rollout: Rollout, progress: Progress) -> str:
    """Returns why nobody else is offered it, however long one waits; "" where somebody may be, or it is over."""
    if progress.outcome == "stopped" or (progress.outcome and not rollout.stopped):
        return ""
    at_work = is_at_work(run)
    if rollout.stopped:
        if at_work:
            return "the update is being stopped: the aggregator offers it to nobody else"
        return f"the update is stopped: no aggregator is at work in {run}, and the next one offers it to nobody else"
    return "" if at_work else f"no aggregator is at work in {run}: the update goes on when one is started again"


def _hint(progress: Progress) -> str:
    """Returns why nothing happens while an aggregator is at work; "" where only the devices know."""
    return "" if progress.steps else "nobody was offered it yet: is a device there?"


def _log_lines(run: Path, rollout: Rollout, *, quiet: bool) -> Progress:
    before = Progress(rollout=rollout.id)
    for progress in _changes(run, rollout):
        if not quiet and progress.stage != before.stage:
            typer.echo(f"stage {progress.stage + 1}: {rollout.stages[progress.stage]} %", err=True)
        for device, step in progress.steps.items():
            known = before.steps.get(device)
            if not quiet and (known is None or known.state != step.state):
                typer.echo(f"{device}: {step.state}{f': {step.reason}' if step.reason else ''}", err=True)
        before = progress
    return before


def _draw(run: Path, rollout: Rollout) -> Progress:
    from rich.live import Live

    shown = Progress(rollout=rollout.id)
    with Live(_table(rollout, shown), refresh_per_second=4) as live:
        for progress in _changes(run, rollout):
            shown = progress
            live.update(_table(rollout, shown))
    return shown


def _table(rollout: Rollout, progress: Progress) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in rows(rollout, progress):
        table.add_row(*map(Text, row))
    over = sum(step.over for step in progress.steps.values())
    bar = ProgressBar(total=max(1, len(progress.steps)), completed=over, width=40)
    return Group(Text(describe(rollout, progress), style="bold"), bar, table)
