"""How commands write: tables that people read on a terminal and programs read in a pipe, and JSON documents."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from edgefed.errors import ConfigError
from edgefed.files import settled_name
from edgefed.logs import printable

__all__ = ["told_where", "write_json", "write_table"]


def write_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a table to stdout: drawn on a terminal, tab-separated lines with the header first elsewhere."""
    if not sys.stdout.isatty():
        for row in (header, *rows):
            typer.echo("\t".join(printable(str(cell)) for cell in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for index, name in enumerate(header):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    Console().print(table)


def write_json(document: object) -> None:
    """Writes one JSON document to stdout."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    typer.echo("\n".join(map(printable, text.split("\n"))))  # a new line within a string is escaped already


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
