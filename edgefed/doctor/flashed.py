"""What flashing wrote onto the board, compared with what is there now."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from edgefed.doctor.findings import Board, Findings, note, ok, problem
from edgefed.errors import FlashError
from edgefed.files import hash_file
from edgefed.flashing.manifest import RECORD, WHEELHOUSE, FileRecord, Record, read_record

__all__ = ["look_at_flashed_files"]


def look_at_flashed_files(board: Board) -> Findings:
    """Yields which files were changed since, or are gone."""
    place = board.root / RECORD.lstrip("/")
    try:
        record = read_record(place.read_bytes(), str(board.root))
    except FileNotFoundError:
        yield ok("edgefed was not flashed onto this board")
        return
    except FlashError as error:
        yield note(str(error))
        return
    if not record.complete:
        yield problem("flashing was interrupted", "flash the board again, with --upgrade")
    changed: dict[str, list[str]] = {}
    for path, state in _states(board.root, record):
        if state:
            changed.setdefault(state, []).append(path)
    if not changed:
        yield ok(f"edgefed {record.edgefed} was flashed, and its {len(record.files)} files are as they were written")
    for state, paths in changed.items():
        yield note(f"{state} since the board was flashed: {', '.join(paths)}", _remedy(state, paths))


def _states(root: Path, record: Record) -> Iterator[tuple[str, str]]:
    """Yields every path that was written, and what became of it."""
    for path, written in record.files.items():
        yield path, _state(root / path.lstrip("/"), written)
    for path, target in record.links.items():
        link = root / path.lstrip("/")
        if not link.is_symlink():
            yield path, "gone"
        else:
            yield path, "" if str(link.readlink()) == target else "changed"


def _state(file: Path, written: FileRecord) -> str:
    """Returns what became of a file; "" where it is as it was, or fewer may read it (tmpfiles.d sees to that)."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        if hash_file(file) != written.sha256:
            return "changed"
    except FileNotFoundError:
        return "gone"
    except PermissionError:
        return "not readable by this user, so not compared"
    return "open to more users" if mode & ~int(written.mode, 8) else ""


def _remedy(state: str, paths: list[str]) -> str:
    if state == "open to more users":
        return "chmod them back"
    if any(path.startswith(WHEELHOUSE) for path in paths):
        return "the first boot refuses wheels that were changed: flash the board again, with --upgrade"
    if state.startswith("not readable"):
        return "run the doctor as root"
    return "where nobody meant to: flash the board again, with --upgrade; what was meant stays"
