"""`edgefed doctor`: what would stop the agent on this board, and what to do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgefed.doctor.examination import Examined
    from edgefed.doctor.findings import Status

__all__ = ["doctor"]

_ON_BOARDS = Path("/etc/edgefed/agent.toml")  # where `edgefed flash` puts it


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(help="The device's agent.toml.  [default: agent.toml, or /etc/edgefed/agent.toml]"),
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Make this check; may be repeated.")] = None,
    skip: Annotated[list[str] | None, typer.Option("--skip", help="Leave this check out; may be repeated.")] = None,
    patience: Annotated[
        float, typer.Option(help="Seconds that a library may take to load and compute.", min=1, metavar="SECONDS")
    ] = 180.0,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
) -> None:
    """Look over this board: everything that the agent needs here, and what to do where it is not right.

    Each finding is `ok`, a `note`, or a `problem`; the exit code is 17 where there is a problem, which stops the agent.
    It may be run beside a running agent, changes nothing, and connects to the broker under a client id of its own.
    Run it as the agent's user or as root, by the Python that the agent runs on. The checks are configuration, python,
    memory, disk, clock, enrollment, certificate, broker, service, flash, power, torch, bitsandbytes and onnxruntime.

    Examples:
      edgefed doctor                                       agent.toml here, or the board's own
      edgefed doctor agent.toml --only broker --only clock
      edgefed doctor --skip torch --skip bitsandbytes --json
    """
    from edgefed.cli.output import write_json
    from edgefed.doctor.examination import choose_checks, examine, meet_board
    from edgefed.errors import ProblemsFound

    checks = choose_checks(only or (), skip or ())
    board = meet_board(config or _default(), kernel_patience_s=patience)
    results: list[Examined] = []
    for number, check in enumerate(checks, 1):
        with _progress(f"{check.name} ({number} of {len(checks)})"):
            result = examine(board, check)
        results.append(result)
        if not json:
            _write(result)
    if json:
        import msgspec

        device = {"device": board.options.device, "fleet": board.options.fleet} if board.options is not None else {}
        write_json({"config": str(board.config), **device, "checks": msgspec.to_builtins(results)})
    stopping = [result.check for result in results if result.status == "problem"]
    if stopping:
        raise ProblemsFound(f"something stops the agent: see {', '.join(stopping)}")


def _default() -> Path:
    here = Path("agent.toml")
    return _ON_BOARDS if not here.exists() and _ON_BOARDS.exists() else here


def _write(result: Examined) -> None:
    """Writes what a check found: a line each, and what to do about it on a line of its own."""
    for finding in result.findings:
        typer.echo(_folded(f"{_marked(finding.status)}  {result.check:14}", finding.seen, indent=25))
        if finding.remedy:
            typer.echo(_folded(" " * 25, f"→ {finding.remedy}", indent=27))


def _marked(status: Status) -> str:
    """Returns the status in its column; in colour on a terminal."""
    import sys

    text = f"{status:7}"
    if not sys.stdout.isatty() or status == "ok":
        return text
    return typer.style(text, fg=typer.colors.RED if status == "problem" else typer.colors.YELLOW, bold=True)


def _folded(head: str, text: str, *, indent: int) -> str:
    """Returns a line, broken at the terminal's width; as one line elsewhere."""
    import shutil
    import sys
    import textwrap

    from edgefed.logs import printable

    text = printable(text)  # some of it was said by others: the broker, the journal
    if not sys.stdout.isatty():
        return f"{head}  {text}" if head.strip() else f"{head}{text}"
    room = max(30, shutil.get_terminal_size().columns - indent)
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    first = f"{head}  {lines[0]}" if head.strip() else f"{head}{lines[0]}"
    return "\n".join([first, *(" " * indent + line for line in lines[1:])])


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """Shows on stderr what is looked at; nothing where nobody watches."""
    import sys

    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"looking at {what}"):
        yield
