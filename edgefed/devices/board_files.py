"""The boards that edgefed knows: reads `device_profiles/*.toml`, and finds a board by its id or by what a machine says.

The files lie beside the package in a source checkout, and inside of it where it was installed.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from edgefed.devices.board_parts import plain_mode_name
from edgefed.devices.boards import Board
from edgefed.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["board_ids", "boards", "check_board", "find_board", "load_board", "match_board", "profiles_directory"]

_LEAST_MEMORY = 0.8
"""Firmware and kernel keep some of the nominal memory for themselves, and never so much."""
_MOST_MEMORY = 1.02
_WHERE = re.compile(r" - at `\$\.?(.*)`$")


def profiles_directory() -> Path:
    """Returns where the sheets are.

    Raises:
        ConfigError: they are in neither place, which is what a broken installation looks like.
    """
    package = Path(__file__).resolve().parents[1]
    for place in (package / "device_profiles", package.parent / "device_profiles"):
        if place.is_dir():
            return place
    raise ConfigError(f"{package}: the sheets of the boards (device_profiles) are missing: install edgefed again")


def board_ids() -> list[str]:
    """Returns the ids of all boards, sorted; reads no file."""
    return sorted(path.stem for path in profiles_directory().glob("*.toml"))


def boards() -> list[Board]:
    """Returns every board, by id.

    Raises:
        ConfigError: a sheet is wrong.
    """
    return [load_board(profiles_directory() / f"{board_id}.toml") for board_id in board_ids()]


def find_board(board_id: str) -> Board:
    """Returns a board by its id.

    Raises:
        ConfigError: there is no such board, or its sheet is wrong.
    """
    check_board(board_id)
    return load_board(profiles_directory() / f"{board_id}.toml")


def check_board(board_id: str) -> None:
    """Raises a ConfigError, with the ids that come near, where no board has this id."""
    known = board_ids()
    if board_id in known:
        return
    near = difflib.get_close_matches(board_id, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(f"there is no board {board_id!r}; {hint}`edgefed boards` lists all {len(known)}")


def match_board(
    *,
    device_tree_model: str | None = None,
    gpu_name: str | None = None,
    memory_bytes: int | None = None,
    power_mode: str | None = None,
) -> Board | None:
    """Returns the board that a machine is; None where none fits, or several do and nothing tells them apart.

    The device tree decides where it names a board, else the GPU's name. Boards that differ in memory only are told
    apart by it; the variants of a board that differ in what its firmware allows, by the power mode: one that only one
    of them has decides, and else it is the plain one, whose id begins the others'.

    Args:
        device_tree_model: as device tree or firmware names the machine.
        gpu_name: as the driver does.
        memory_bytes: of the GPU where it has its own, else of the host.
        power_mode: by its name.

    Raises:
        ConfigError: a sheet is wrong.
    """
    known = boards()
    fitting = [board for board in known if _found(board.match.device_tree_model, device_tree_model)]
    fitting = fitting or [board for board in known if _found(board.match.gpu_name, gpu_name)]
    if memory_bytes is not None:
        fitting = [board for board in fitting if _holds(board, memory_bytes)]
    if len(fitting) > 1 and power_mode is not None:
        fitting = [board for board in fitting if _has_mode(board, power_mode)] or fitting
    if not fitting:
        return None
    plain = min(fitting, key=lambda board: len(board.id))
    return plain if all(board.id.startswith(plain.id) for board in fitting) else None


def load_board(path: Path) -> Board:
    """Returns the board that a file describes.

    Raises:
        ConfigError: it cannot be read, is not TOML, has an unknown key, lacks one, or says what is not allowed.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: byte {error.start} cannot be decoded") from None
    except (ValueError, RecursionError) as error:  # beside TOMLDecodeError, of a number with thousands of digits
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None
    for where, key, allowed in _unknown_keys(document, Board):
        near = difflib.get_close_matches(key, allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{path}: {where} is not a known key; {hint}allowed there: {', '.join(allowed)}")
    try:
        board = msgspec.convert(document, Board)
    except (msgspec.ValidationError, OverflowError) as error:  # the latter of a whole number that no float holds
        raise ConfigError(f"{path}: {_in_words(str(error), document)}") from None
    if board.id != path.stem:
        raise ConfigError(f"{path}: id is {board.id!r}; allowed is the name of the file, {path.stem!r}")
    return board


def _found(pattern: str, text: str | None) -> bool:
    return bool(pattern and text and re.search(pattern, text))


def _holds(board: Board, memory_bytes: int) -> bool:
    nominal = board.figures.memory_bytes.value
    return _LEAST_MEMORY * nominal <= memory_bytes <= _MOST_MEMORY * nominal


def _has_mode(board: Board, name: str) -> bool:
    return plain_mode_name(name) in [plain_mode_name(mode.name) for mode in board.power_modes]


def _unknown_keys(table: Mapping[str, Any], kind: type, path: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """Yields each key that a struct does not have, as (dotted name, key, allowed keys), tables within it too."""
    hints = get_type_hints(kind)
    fields = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))  # type: ignore[attr-defined]
    for key, value in table.items():
        where = f"{path}{key}"
        if key not in fields:
            yield where, key, list(fields)
            continue
        inner = _struct_in(hints[fields[key]])
        if inner is None:
            continue
        if isinstance(value, dict):
            yield from _unknown_keys(value, inner, f"{where}.")
        for index, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, dict):
                yield from _unknown_keys(item, inner, f"{where}[{index}].")


def _struct_in(hint: Any) -> type | None:
    """Returns the struct that an annotation speaks of, such as `Figure | None`; None where it speaks of none."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    if get_origin(hint) is dict:
        return None
    return next((found for found in map(_struct_in, get_args(hint)) if found), None)


def _in_words(message: str, document: Mapping[str, Any]) -> str:
    """Returns what msgspec says with the place in front, and what was found there."""
    place = _WHERE.search(message)
    if place is None:
        return message
    found: Any = document
    for key in re.findall(r"[^.\[\]]+", place[1]):
        found = found[int(key)] if isinstance(found, list) else found.get(key) if isinstance(found, dict) else None
    said = message[: place.start()].replace("`", "")
    if isinstance(found, int):
        found = hex(found) if found.bit_length() > 64 else found  # Python does not write out thousands of digits
    shown = "" if isinstance(found, dict | list) or found is None else f" (found {found!r:.80})"
    return f"{place[1]}: {said[:1].lower()}{said[1:]}{shown}"
