"""The record of a round, once more, beside the state that came out of it: what vouches for it without the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgefed.coordinator.answers import MergedRound
from edgefed.coordinator.digests import row_digest
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.files import replace_file

__all__ = ["read_records", "write_record"]


class _Signed(msgspec.Struct, frozen=True, kw_only=True):
    record: MergedRound
    digest: str


def write_record(directory: RunDirectory, record: MergedRound) -> None:
    """Writes the record of a round, whole or not at all.

    Raises:
        OSError: the disk refuses it.
    """
    signed = _Signed(record=record, digest=_digest(record))
    replace_file(directory.record(record.round), [msgspec.json.encode(signed), b"\n"])


def read_records(run: Path) -> Iterator[MergedRound]:
    """Yields the records that are as they were written, in no order."""
    for path in (run / "global").glob("*.json"):
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Signed)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        if found.digest == _digest(found.record):
            yield found.record


def _digest(record: MergedRound) -> str:
    return row_digest(record.round, msgspec.json.encode(record).decode())
