"""Training examples from files: JSON lines or CSV, one file or a directory of them.

Everything is read at once: the data of one device fits in its memory, and a mistake is better told before a round than
in it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefed.errors import DataError

__all__ = ["SUFFIXES", "Example", "count_examples", "read_examples", "read_rows", "texts_of_json_lines"]

SUFFIXES = (".csv", ".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Example:
    """One source text and the target text to write for it."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class _Record:
    path: Path
    line: int
    values: dict[str, Any]

    def text(self, field: str) -> str:
        if field not in self.values:
            raise DataError(
                f"{self.path}, line {self.line}: there is no field {field!r}; "
                f"the fields are {', '.join(map(repr, self.values))}"
            )
        value = self.values[field]
        if not isinstance(value, str):
            raise DataError(
                f"{self.path}, line {self.line}: field {field!r} is {_json_kind(value)}, and only text can be used; "
                "write it as a string"
            )
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise DataError(
                f"{self.path}, line {self.line}: field {field!r} has half of a surrogate pair (\\ud800 to \\udfff), "
                "which is no text; remove it"
            )
        return value


def read_examples(path: Path, *, source_field: str, target_field: str) -> list[Example]:
    """Return the examples of a file or of all files in a directory, sorted by name.

    Args:
        path: a ``.jsonl``, ``.ndjson`` or ``.csv`` file in UTF-8, or a directory with such files.
        source_field: the field (CSV: column) with the text to read.
        target_field: the field with the text to write.

    Raises:
        DataError: with file, line and field, where something is missing or is not text.
    """
    return [Example(r.text(source_field), r.text(target_field)) for r in _records(path)]


def count_examples(path: Path) -> int:
    """Return how many examples a file or a directory has, whatever their fields are.

    Raises:
        DataError: with file and line, where something cannot be read.
    """
    return sum(1 for _ in _records(path))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return every row with all of its fields, from the files that `read_examples` reads.

    Raises:
        DataError: with file, line and field, where something is missing or is not text.
    """
    return [{field: record.text(field) for field in record.values} for record in _records(path)]


def texts_of_json_lines(origin: Path, content: str, *, field: str) -> list[tuple[str, str]]:
    """Return (origin and line number, text) of every JSON line that was read already, from standard input say.

    Raises:
        DataError: with line and field, where something is missing or is not text.
    """
    return [(f"{origin}:{record.line}", record.text(field)) for record in _json_records(origin, content)]


def _records(path: Path) -> Iterator[_Record]:
    for file in _files(path):
        text = _decoded(file)
        if not text.strip():
            raise DataError(f"{file} is empty; it should hold training examples")
        before_any = True
        for record in _csv_records(file, text) if file.suffix.lower() == ".csv" else _json_records(file, text):
            before_any = False
            yield record
        if before_any:
            raise DataError(f"{file} has a header but no rows; it should hold training examples")


def _files(path: Path) -> list[Path]:
    kinds = ", ".join(SUFFIXES)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise DataError(f"the directory {path} has no {kinds} file")
        return found
    if not path.exists():
        raise DataError(f"{path} does not exist; name a {kinds} file or a directory with such files")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'!r}; data files end in {kinds}")
    return [path]


def _decoded(file: Path) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")  # spreadsheets like to begin a CSV with a byte order mark
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8; convert the file to UTF-8"
        ) from error


def _json_records(file: Path, text: str) -> Iterator[_Record]:
    for number, line in enumerate(text.split("\n"), start=1):  # a JSON string may hold other line separators
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            # Where, and not what: logs are collected, and the examples are nobody else's.
            where = f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{file}, line {number}: not JSON ({where})") from error
        except RecursionError as error:
            raise DataError(f"{file}, line {number}: JSON nested too deeply") from error
        if not isinstance(values, dict):
            raise DataError(f"{file}, line {number}: {_json_kind(values)} where an object with named fields is needed")
        yield _Record(file, number, values)


def _csv_records(file: Path, text: str) -> Iterator[_Record]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(rows)
        if len(set(header)) != len(header):
            raise DataError(f"{file}, line 1: a column name occurs twice in {', '.join(map(repr, header))}")
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(f"{file}, line {rows.line_num}: {len(row)} values for {len(header)} columns")
            yield _Record(file, rows.line_num, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise DataError(f"{file}, line {rows.line_num}: not CSV ({error})") from error


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a string",
    }
    return kinds[type(value)]
