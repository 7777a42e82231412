"""What can still be read of a store, row by row, whatever has become of its file.

A row counts where its digest says that it is what was written. Tables are read from the front until that fails and from
the back until that fails: what is damaged lies in between.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.digests import row_digest
from edgefed.coordinator.events import Event, UpdateReceived
from edgefed.coordinator.passport import Passport, read_passport
from edgefed.coordinator.round_records import read_records

__all__ = ["Salvage", "salvage"]


@dataclass(frozen=True, slots=True)
class Salvage:
    """What is whole of a store.

    Attributes:
        passport: what the run is; None where neither the store nor the file beside it says so any more.
        start: the adapter before the first round.
        merged: records of rounds that are over, in order.
        answers: in order of arrival.
        received: updates that were accepted, as the journal has them up to the first entry that is damaged.
        writes: how many writes the store had taken, as far as it can be told.
    """

    passport: Passport | None
    start: MergedRound | None
    merged: tuple[MergedRound, ...]
    answers: tuple[Answer, ...]
    received: tuple[UpdateReceived, ...]
    writes: int


def salvage(directory: Path) -> Salvage:
    """Returns what can be read of the store in a run directory; nothing of it is changed. Never raises for damage."""
    with tempfile.TemporaryDirectory(prefix="edgefed-salvage-") as scratch:  # SQLite changes what it opens
        for path in directory.glob("store.sqlite*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, scratch)
        copy = Path(scratch, "store.sqlite")
        rows = {table: _rows(copy, table) for table in ("meta", "rounds", "answers", "journal")}
    meta = {
        row["key"]: row["value"]
        for row in rows["meta"].values()
        if row["digest"] == row_digest(row["key"], row["value"])
    }
    merged = [
        _decoded(row["merged"], MergedRound)
        for row in rows["rounds"].values()
        if row["digest"] == row_digest(row["round"], row["merged"])
    ]
    answers = [
        _decoded(row["answer"], Answer)
        for row in rows["answers"].values()
        if row["digest"] == row_digest(row["round"], row["device"], row["sha256"], row["outcome"], row["answer"])
    ]
    # What is kept beside a state is the same, and may have outlived the store.
    rounds = {one.round: one for one in (*read_records(directory), *filter(None, merged))}
    start = _decoded(meta["start"], MergedRound) if "start" in meta else rounds.pop(0, None)
    return Salvage(
        passport=_passport(directory, meta),
        start=start,
        merged=tuple(rounds[number] for number in sorted(rounds) if number),
        answers=tuple(filter(None, answers)),
        received=tuple(event for event in _chain(rows["journal"]) if isinstance(event, UpdateReceived)),
        writes=int(meta.get("writes", "0")),
    )


def _passport(directory: Path, meta: dict[str, str]) -> Passport | None:
    kept = read_passport(directory)
    with contextlib.suppress(msgspec.MsgspecError):
        if "run" in meta and "identity" in meta:
            return Passport(run=meta["run"], identity=msgspec.json.decode(meta["identity"], type=dict[str, Any]))
    return kept


def _chain(rows: dict[int, sqlite3.Row]) -> Iterator[Any]:
    head = ""
    for row in rows.values():
        head = row_digest(head, row["now_s"], row["event"])
        event = _decoded(row["event"], Event)
        if row["digest"] != head or event is None:
            return
        yield event


def _rows(path: Path, table: str) -> dict[int, sqlite3.Row]:
    """Returns rows by their row id, in its order."""
    found: dict[int, sqlite3.Row] = {}
    if not path.is_file():
        return found
    for order in ("ASC", "DESC"):
        with (
            contextlib.suppress(sqlite3.Error, UnicodeDecodeError),
            contextlib.closing(sqlite3.connect(path)) as connection,
        ):
            connection.row_factory = sqlite3.Row
            connection.text_factory = _text
            for row in connection.execute(f"SELECT rowid AS at, * FROM {table} ORDER BY rowid {order}"):
                if "digest" in row.keys():  # noqa: SIM118 - `in` asks for a value of this row
                    found[row["at"]] = row
    return dict(sorted(found.items()))


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")  # what is no text any more has another digest


def _decoded(text: Any, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, TypeError, RecursionError):
        return None
