"""How `edgefed flash` shows what is written: a table for people, a document for programs, a bar meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from edgefed.cli.output import write_json, write_table

if TYPE_CHECKING:
    from edgefed.flashing.board import Board
    from edgefed.flashing.changes import Changes

__all__ = ["progress_bar", "show"]


def show(
    changes: Changes, board: Board, target: str, *, dry_run: bool, json: bool, packed_in: Sequence[str] = ()
) -> None:
    """Writes to stdout what is done to a board, or would be.

    Args:
        changes: what that is.
        board: what it is done to.
        target: its name.
        dry_run: nothing was written.
        json: as a document for programs.
        packed_in: names of the files that were written instead, from which the board takes its own; none where its
            own were written.

    That the board will not be able to train goes to stderr.
    """
    if not _has_torch(changes):
        typer.echo(
            f"{target}: note: the wheelhouse has no torch, so the agent comes up and waits, and this board will not be "
            "able to train: put torch's wheels there too and flash it with them (with --upgrade once it has edgefed)",
            err=True,
        )
    if json:
        write_json(_document(changes, board, target, dry_run=dry_run))
        return
    rows: list[tuple[str, str, str, str]] = [
        ("write", file.path, f"{file.mode:04o}", str(file.size_bytes)) for file in changes.write
    ]
    rows.append(("write", changes.record_path, "0644", str(changes.record_file(complete=True).size_bytes)))
    rows += [("link", link.path, "", link.target) for link in changes.links]
    rows += [("remove", path, "", "") for path in changes.remove]
    rows += [("keep", path, "", "changed on the board") for path in changes.kept]
    if dry_run:
        write_table(("what", "path", "mode", "bytes"), rows)
        return
    files = f"{len(changes.write) + 1} files"
    done = f"{files} written ({changes.size_bytes} bytes)"
    if packed_in:
        done = f"{', '.join(packed_in)} written, with {files} for the board ({changes.size_bytes} bytes)"
    typer.echo(f"{target}: {board.words}: {'it has all of this already' if changes.is_empty else done}")
    for path in changes.kept:
        typer.echo(f"{target}: {path} was changed on the board, and is as it was")


def _has_torch(changes: Changes) -> bool:
    """Whether the wheel that a board trains with is among those that it has when all is done."""
    from edgefed.flashing.manifest import WHEELHOUSE

    return any(path.startswith(f"{WHEELHOUSE}/torch-") for path in changes.record.files)


def _document(changes: Changes, board: Board, target: str, *, dry_run: bool) -> dict[str, Any]:
    record = changes.record_file(complete=True)
    return {
        "target": target,
        "dry_run": dry_run,
        "board": {
            "architecture": board.architecture,
            "python": ".".join(map(str, board.python)),
            "glibc": ".".join(map(str, board.glibc)) if board.glibc else None,
            "system": board.system,
            "l4t": board.l4t or None,
        },
        "has_torch": _has_torch(changes),
        "write": [
            {"path": file.path, "mode": f"{file.mode:04o}", "size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in (*changes.write, record)
        ],
        "links": [{"path": link.path, "target": link.target} for link in changes.links],
        "remove": list(changes.remove),
        "kept": list(changes.kept),
    }


@contextmanager
def progress_bar(total_bytes: int, what: str) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes the bytes done since its last call, and shows them on a terminal's stderr."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda count: bar.advance(task, count)
