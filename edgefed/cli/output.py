"""How commands write: tables that people read on a terminal and programs read in a pipe, and JSON documents."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgefed.errors import ConfigError
from edgefed.files import replace_file, settled_name, temporary_beside
from edgefed.logs import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["check_output", "told_where", "write_json", "write_output", "write_table"]

_BETWEEN = 3  # rich's padding and divider; there is an edge more than there are columns


def write_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a table to stdout: drawn on a terminal, tab-separated lines with the header first elsewhere.

    On a terminal that is too narrow for it, a row is a paragraph.
    """
    if not sys.stdout.isatty():
        for row in (header, *rows):
            typer.echo("\t".join(printable(str(cell)) for cell in row))
        return
    from rich.console import Console

    texts = [[printable(str(cell)) for cell in row] for row in rows]
    console = Console()
    widths = _fitting_widths([header, *texts], console.width)
    if widths is None:
        _write_paragraphs(header, texts, console.width)
        return
    numeric = [all(isinstance(row[index], int | float) for row in rows) for index in range(len(header))]
    console.print(_drawn(header, texts, widths, numeric))


def _fitting_widths(lines: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Returns the columns' widths in characters: no word is broken, and what is left is shared out; or None."""
    from rich.cells import cell_len

    columns = list(zip(*lines, strict=True))
    whole = [max(map(cell_len, column)) for column in columns]
    widths = [max(cell_len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    left = width - sum(widths) - len(columns) * _BETWEEN - 1
    if left < 0:
        return None
    by_need = sorted(range(len(columns)), key=lambda index: whole[index] - widths[index])
    for at, index in enumerate(by_need):
        more = min(left // (len(columns) - at), whole[index] - widths[index])
        widths[index] += more
        left -= more
    return widths


def _drawn(
    header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int], numeric: Sequence[bool]
) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name, width, right in zip(header, widths, numeric, strict=True):
        table.add_column(name, width=width, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _write_paragraphs(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> None:
    """Writes a row as a line with its first cell, and what else is known of it below."""
    for first, *others in rows:
        typer.echo(first)
        told = " · ".join(f"{name} {cell}" for name, cell in zip(header[1:], others, strict=True) if cell)
        typer.echo(textwrap.fill(told, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))


def write_json(document: object) -> None:
    """Writes one JSON document to stdout."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    typer.echo("\n".join(map(printable, text.split("\n"))))  # a new line within a string is escaped already


def check_output(path: Path) -> None:
    """Refuses a file that cannot be written, before minutes are spent on what shall be in it.

    Raises:
        ConfigError: it is a directory, or its directory is not there or may not be written.
    """
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a directory" if path.is_dir() else f"{path.parent} is no directory"
        raise ConfigError(f"--output {path}: {wrong}; name a file to write")
    if _is_replaced(path):
        with told_where(path):
            made = temporary_beside(path.resolve())
            made.touch(exist_ok=False)
            made.unlink()


def write_output(path: Path, content: bytes) -> None:
    """Writes the file that the user has named: the whole of it or nothing; a device or a pipe gets it as it is.

    Raises:
        ConfigError: it cannot be written.
    """
    with told_where(path):
        if _is_replaced(path):
            replace_file(path.resolve(), [content])
        else:
            path.write_bytes(content)


def _is_replaced(path: Path) -> bool:
    """Whether a new file may take the place of what is there: not of /dev/null, nor of /dev/stdout."""
    return path.is_file() or path.is_dir() or not path.exists()


@contextmanager
def told_where(path: Path) -> Iterator[None]:
    """Turns what the operating system says against a path the user named into a message.

    Raises:
        ConfigError: an OSError came out of the block.
    """
    try:
        yield
    except OSError as error:
        where = settled_name(Path(os.fsdecode(error.filename))) if error.filename else path
        raise ConfigError(f"{where}: cannot be used: {error.strerror}") from error
