"""How programs that run for long write their log: for people, for systemd's journal, or as a line of JSON each.

A message that names what it is about, as `log.info("round %(round)d is open", {"round": 3})`, gives these as fields to
whoever reads the log by machine. Much of what is logged was said by other machines, so in no form does a character get
out that a terminal obeys or that begins a new line.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Literal, TextIO

__all__ = ["Form", "form_of", "printable", "start_logging", "tell_failure"]

_log = logging.getLogger(__name__)

Form = Literal["plain", "journal", "json"]

_BARE = re.compile(r"[\w.:/@%+-]+", re.ASCII)
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7


def start_logging(level: int, *, as_json: bool = False, stream: TextIO | None = None) -> Form:
    """Sends the process's log to a stream, in place of where this sent it before, and returns the form that it has.

    Args:
        level: the lowest that is written, as `logging` counts.
        as_json: one JSON object a line; otherwise what suits the stream.
        stream: where to; stderr where it is not given.
    """
    stream = stream or sys.stderr
    form: Form = "json" if as_json else form_of(stream)
    handler = logging.StreamHandler(stream)
    handler.setFormatter({"plain": _Plain, "journal": _Journal, "json": _Json}[form]())
    root = logging.getLogger()
    for earlier in [earlier for earlier in root.handlers if isinstance(earlier.formatter, _Plain | _Journal | _Json)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level)
    return form


def tell_failure(message: str, exit_code: int) -> None:
    """Says on stderr why the program ends: in the log's form where programs read it, else in plain words."""
    if any(isinstance(handler.formatter, _Journal | _Json) for handler in logging.getLogger().handlers):
        _log.error("%(error)s", {"error": message, "exit_code": exit_code})
    else:
        sys.stderr.write("edgefed: " + "\n".join(map(printable, message.splitlines())) + "\n")


def form_of(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Form:
    """Returns "journal" for a stream that systemd reads into its journal, and "plain" for any other.

    systemd says which file the journal's end is in JOURNAL_STREAM, as DEVICE:INODE (systemd.exec(5)); a child of a
    service whose output goes elsewhere has the variable too.
    """
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # a stream that is no file, or is closed
        return "plain"
    return "journal" if environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}" else "plain"


def printable(text: str) -> str:
    """Returns the text with every character that is not seen as itself, but for spaces, escaped as JSON does."""
    return text if text.isprintable() else "".join(char if char.isprintable() else _escaped(char) for char in text)


class _Plain(logging.Formatter):
    """`time level logger: message`, and below it, indented so that it passes for no entry, what happened."""

    def format(self, record: logging.LogRecord) -> str:
        first = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"
        below = (line for text in _happened(self, record).values() for line in text.splitlines())
        return "\n".join((printable(first), *(f"    {printable(line)}" for line in below)))


class _Journal(logging.Formatter):
    """`<priority>message="…" logger=… key=value`: the journal knows the time and takes the priority (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = {"message": record.getMessage(), "logger": record.name, **_fields(record), **_happened(self, record)}
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG_PRIORITY)
        return f"<{priority}>" + " ".join(f"{key}={_value(value)}" for key, value in pairs.items())


class _Json(logging.Formatter):
    """An object with time (UTC), level, logger, message, the message's fields, and what happened."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        entry = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "fields": _fields(record),
            **_happened(self, record),
        }
        return printable(json.dumps(entry, ensure_ascii=False))


def _fields(record: logging.LogRecord) -> dict[str, str | int | float | bool | None]:
    """Returns what the message names; logging itself unpacks a mapping that is a message's only argument."""
    return {key: _simple(value) for key, value in record.args.items()} if isinstance(record.args, Mapping) else {}


def _simple(value: object) -> str | int | float | bool | None:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no name for it
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _happened(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, str]:
    return {"exception": formatter.formatException(record.exc_info)} if record.exc_info else {}


def _value(value: object) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else printable(json.dumps(text, ensure_ascii=False))


def _escaped(char: str) -> str:
    # JSON has no need to escape this one, and a terminal none to show it.
    return "\\u007f" if char == "\x7f" else json.dumps(char)[1:-1]
