"""`edgefed boards`: the boards that edgefed has sheets of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgefed.devices.board_parts import Figure, PowerMode
    from edgefed.devices.boards import Board

__all__ = ["boards"]

_HEADER = ("board", "GiB", "fp32/s", "bf16/s", "int8/s", "delivered in")
_MODE_HEADER = ("power mode", "id", "SMs", "GPU clock", "bandwidth", "budget", "fp32", "bf16", "fp16", "int8", "status")


def boards(
    board_id: Annotated[str | None, typer.Argument(metavar="ID", help="Show the whole sheet of this one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
) -> None:
    """List the boards whose data sheets edgefed knows: memory, dense peaks, power modes.

    Peaks are of the whole board in its fastest mode; with ID, they are shown for each of its power modes.

    The figures are what makers and others have published, each with its source and status; what a device can do is
    measured on the device (`edgefed profile`). A machine plays a board where `[emulate]` in its agent.toml says so.

    Examples:
      edgefed boards                       all of them
      edgefed boards jetson-orin-nano-8gb  one, with every source
    """
    from edgefed.cli.output import write_json, write_table
    from edgefed.devices import board_files

    if board_id is None:
        known = board_files.boards()
        if json:
            write_json([_document(board) for board in known])
        else:
            write_table(_HEADER, [_row(board) for board in known])
        return
    board = board_files.find_board(board_id)
    if json:
        write_json(_document(board))
        return
    write_table(("what", "value", "status", "source or formula"), list(_figures(board)))
    if board.power_modes:
        write_table(_MODE_HEADER, [_mode_row(board, mode) for mode in board.power_modes])
    write_table(("source", "what it is"), list(board.sources.items()))


def _document(board: Board) -> dict[str, Any]:
    """Returns the sheet as its file has it, and the figures of every power mode beside it."""
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(board)
    document["in_mode"] = {mode.name: msgspec.to_builtins(board.in_mode(mode.name)) for mode in board.power_modes}
    return document


def _row(board: Board) -> tuple[str, ...]:
    from edgefed.cli.profile_view import human

    peaks = board.in_mode(None).peaks
    shown = [human(peaks[kind], "") if kind in peaks else "—" for kind in ("fp32", "bf16", "int8")]
    memory = f"{board.figures.memory_bytes.value / (1 << 30):.0f}"
    return (board.id, memory, *shown, next((mode.name for mode in board.power_modes if mode.default), "—"))


def _figures(board: Board) -> Iterator[tuple[str, str, str, str]]:
    yield "board", board.name, "", board.id
    for what, text in (("processor", board.cpu), ("GPU", board.gpu)):
        if text:
            yield what, text, "", ""
    for key, figure in board.named_figures():
        yield key, f"{figure.value:.6g}", figure.status, _origin(figure)
    for kind, reason in board.absent.items():
        yield kind, "—", "", reason


def _origin(figure: Figure) -> str:
    return "; ".join(filter(None, (figure.formula, figure.source)))


def _mode_row(board: Board, mode: PowerMode) -> tuple[str, ...]:
    from edgefed.cli.profile_view import human
    from edgefed.devices.boards import RATE_TYPES

    now = board.in_mode(mode.name)
    units = {kind: "OP/s" if kind == "int8" else "FLOP/s" for kind in RATE_TYPES}
    return (
        f"{mode.name}{'*' if mode.default else ''}",
        "—" if mode.id is None else str(mode.id),
        str(mode.sm_count),
        human(mode.gpu_clock_hz, "Hz"),
        human(now.bandwidth_bytes_per_s, "B/s"),
        "—" if mode.budget_w is None else f"{mode.budget_w:g} W",
        *(human(now.peaks[kind], unit) if kind in now.peaks else "—" for kind, unit in units.items()),
        f"{mode.status}: {mode.source}" if mode.source else mode.status,
    )
