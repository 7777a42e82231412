"""A run's id and settings in a file of their own, for the day when the store is damaged: neither can be made up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgefed.coordinator.digests import row_digest
from edgefed.files import replace_file

__all__ = ["Passport", "changed_settings", "read_passport", "write_passport"]

_NAME = "run.json"


class Passport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is, whatever became of it.

    Attributes:
        run: its id.
        identity: the settings that it was begun with.
    """

    run: str
    identity: dict[str, Any]


class _Signed(msgspec.Struct, frozen=True, kw_only=True):
    run: str
    identity: dict[str, Any]
    digest: str


def read_passport(directory: Path) -> Passport | None:
    """Returns what the file of a run directory says; None where there is none, or where it was damaged."""
    try:
        found = msgspec.json.decode((directory / _NAME).read_bytes(), type=_Signed)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    passport = Passport(run=found.run, identity=found.identity)
    return passport if found.digest == _digest(passport) else None


def write_passport(directory: Path, passport: Passport) -> None:
    """Writes the file, whole or not at all.

    Raises:
        OSError: the disk refuses it.
    """
    signed = _Signed(run=passport.run, identity=passport.identity, digest=_digest(passport))
    replace_file(directory / _NAME, [msgspec.json.format(msgspec.json.encode(signed)), b"\n"])


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two sets of settings, in words, by dotted key in order."""
    old, new = _by_dotted_key(before), _by_dotted_key(now)
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return [f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in changed]


def _digest(passport: Passport) -> str:
    return row_digest(passport.run, json.dumps(passport.identity, sort_keys=True))


def _by_dotted_key(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _by_dotted_key(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
