"""The roster: what an operator wants of each device, and what they call it. A small document beside the run's store.

The command line writes it and the aggregator obeys it, so it holds whether or not an aggregator is running. Two command
lines take turns by a lock; the aggregator only reads, and sees one whole document or the next. Federations that shall
go by the same roster have a link in its place, so whoever knows a run's directory finds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from edgefed.errors import ConfigError, StoreError
from edgefed.files import replace_file
from edgefed.protocol.messages.down import Duty

__all__ = ["Entry", "Roster", "RosterWatch", "change_roster", "parse_labels", "read_roster", "share_roster", "why_held"]

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"
_LABEL_PATTERN = re.compile(rf"{_LABEL}\Z")

LabelText = Annotated[str, Meta(pattern=rf"^{_LABEL}\Z")]
ReasonText = Annotated[str, Meta(max_length=1024)]

_WORDS: dict[Duty, str] = {
    "paused": "paused by the operator",
    "draining": "gets no new task: the operator lets it run dry",
    "removed": "removed from the fleet by the operator",
}


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device.

    Attributes:
        duty: what is wanted of it.
        reason: why, in the operator's words.
        since_unix_s: when that was said.
        labels: the operator's names for groups of devices: `room = lab`.
    """

    duty: Duty = "active"
    reason: ReasonText = ""
    since_unix_s: float = 0.0
    labels: dict[LabelText, LabelText] = {}


class Roster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every device that something was said of; the others are active and have no labels."""

    version: Literal[1] = 1
    devices: dict[str, Entry] = {}

    def entry(self, device: str) -> Entry:
        """Returns what was said of a device."""
        return self.devices.get(device, Entry())

    @property
    def held(self) -> tuple[tuple[str, Duty], ...]:
        """Devices that get no new task, with what is wanted of them, sorted."""
        return tuple((device, entry.duty) for device, entry in sorted(self.devices.items()) if entry.duty != "active")

    def with_duty(self, devices: Iterable[str], duty: Duty, *, reason: str, now_unix_s: float) -> Roster:
        """Returns a roster in which this is wanted of these devices.

        Who already has that duty keeps its time, and its reason where no other is given.
        """
        changed = dict(self.devices)
        for device in devices:
            entry = self.entry(device)
            if entry.duty == duty:
                changed[device] = replace(entry, reason=reason or entry.reason)
            else:
                changed[device] = replace(entry, duty=duty, reason=reason, since_unix_s=now_unix_s)
        return replace(self, devices=changed)

    def with_labels(self, devices: Iterable[str], labels: Mapping[str, str]) -> Roster:
        """Returns a roster in which these devices have these labels too; an empty value takes a label away."""
        changed = dict(self.devices)
        for device in devices:
            entry = self.entry(device)
            merged = {key: value for key, value in {**entry.labels, **labels}.items() if value}
            changed[device] = replace(entry, labels=dict(sorted(merged.items())))
        return replace(self, devices=changed)

    def has(self, device: str, labels: Mapping[str, str]) -> bool:
        """Whether a device has all of these labels."""
        return labels.items() <= self.entry(device).labels.items()


def why_held(entry: Entry) -> str:
    """Returns what a device is told and shows; "" where it may take part."""
    if entry.duty == "active":
        return ""
    return f"{_WORDS[entry.duty]}: {entry.reason}" if entry.reason else _WORDS[entry.duty]


def parse_labels(texts: Iterable[str], *, removable: bool = False) -> dict[str, str]:
    """Returns labels from `KEY=VALUE` texts.

    Args:
        texts: what was typed.
        removable: an empty value is allowed; it takes the label away.

    Raises:
        ConfigError: one is no label, or a key is there twice.
    """
    labels: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        good = equals and _LABEL_PATTERN.match(key) and (_LABEL_PATTERN.match(value) or (removable and not value))
        if not good:
            raise ConfigError(
                f"{text!r} is no label: write KEY=VALUE, both of letters, digits and inner . _ -, at most 64 of them"
                + (", or KEY= to take a label away" if removable else "")
            )
        if labels.setdefault(key, value) != value:
            raise ConfigError(f"label {key} is there twice, as {labels[key]!r} and {value!r}")
    return labels


def read_roster(path: Path) -> Roster:
    """Returns the roster in a file; an empty one where there is no file.

    Raises:
        StoreError: it cannot be read, or is no roster; or it is shared, and not there: that takes nobody back.
    """
    link, path = path, _document(path)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Roster)
    except FileNotFoundError:
        if link.is_symlink():
            raise StoreError(f"the roster {path} is gone: bring it back, or remove {link} to begin anew") from None
        return Roster()
    except OSError as error:
        raise StoreError(f"the roster {path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"the roster {path} is damaged: {error}; repair it, or remove it to begin anew") from error


def change_roster(path: Path, change: Callable[[Roster], Roster]) -> Roster:
    """Replaces the roster by what `change` makes of it, and returns that. One process does so at a time.

    Raises:
        StoreError: it cannot be read or written.
    """
    document = _document(path)
    with _locked(document.with_suffix(".lock")):
        changed = change(read_roster(path))
        _write(document, changed)
    return changed


def share_roster(own: Path, shared: Path | None) -> None:
    """Has a run go by a roster that other runs go by too, or by one of its own again.

    What the run's own one says goes along, to a shared one that is not there yet; and back.

    Args:
        own: the place of the roster in the run's directory.
        shared: the document of all of them; None for one that is the run's own.

    Raises:
        ConfigError: both are there, and say different things.
        StoreError: one of them cannot be read or written.
    """
    if shared is None or shared.absolute() == own.absolute():
        if own.is_symlink():
            _write(own, read_roster(own))
        return
    with _locked(own.with_suffix(".lock")), _locked(shared.with_suffix(".lock")):
        if not shared.exists():
            _write(shared, read_roster(own))
        elif own.exists() and not own.is_symlink() and read_roster(own) != read_roster(shared):
            raise ConfigError(f"{own} and {shared} want different things of devices: remove what shall not hold")
        try:
            own.unlink(missing_ok=True)
            own.symlink_to(shared.absolute())
        except OSError as error:
            raise StoreError(f"the roster {own} cannot be written: {error.strerror}") from error


class RosterWatch:
    """Notices that the roster has been replaced.

    Args:
        path: of the roster; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._looked = False

    def look(self) -> Roster | None:
        """Returns the roster where it is another than at the last look, or the first; None where nothing changed.

        Raises:
            StoreError: it is another one, and cannot be read; the next look will not say so again.
        """
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            seen = None
        if self._looked and seen == self._seen:
            return None
        self._looked, self._seen = True, seen
        return read_roster(self._path)


def _document(path: Path) -> Path:
    """Returns where a roster really is."""
    return path.resolve() if path.is_symlink() else path


def _write(path: Path, roster: Roster) -> None:
    try:
        replace_file(path, [msgspec.json.format(msgspec.json.encode(roster), indent=1), b"\n"])
    except OSError as error:
        raise StoreError(f"the roster {path} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"the roster cannot be written: {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
