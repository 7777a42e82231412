"""What the installer remembers and the agent may read; and which release is in use, as the environment itself says."""

from __future__ import annotations

import msgspec
from msgspec import field

from edgefed.errors import UpdateError
from edgefed.files import replace_file
from edgefed.updates.places import Home
from edgefed.updates.release import MANIFEST, Result

__all__ = ["MAX_TRIES", "Record", "Trial", "read_record", "read_trial", "release_in_use", "write_record", "write_trial"]

MAX_TRIES = 3
"""A release that was begun so often and is not installed is not tried again; one that was rolled back is not either."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All that the installer remembers.

    Attributes:
        highest_number: of all releases that were found good here; older ones are refused.
        latest: id of the one that was found good last; it may come again.
        result: what came of the latest bundle.
        tries: how often each release was begun that is not in use, by its id.
    """

    highest_number: int = 0
    latest: str = ""
    result: Result | None = None
    tries: dict[str, int] = field(default_factory=dict)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that is being installed: what of it is known so far.

    Attributes:
        file: its name where the agent has put it.
        began_unix_s: when its installation began.
        bundle: sha256 of the file.
        id: of the release.
        release: its name.
        number: of the release.
        environment: name of its environment.
    """

    file: str
    began_unix_s: float
    bundle: str = ""
    id: str = ""
    release: str = ""
    number: int = 0
    environment: str = ""


def read_record(home: Home) -> Record:
    """Returns what the installer remembers; an empty record before the first update.

    Raises:
        UpdateError: it is damaged, or cannot be read.
    """
    try:
        return msgspec.json.decode(home.record.read_bytes(), type=Record)
    except FileNotFoundError:
        return Record()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpdateError(
            f"{home.record} cannot be read: {error}; without it, older releases could be played again: flash the board "
            "with new wheels, then remove it"
        ) from None


def write_record(home: Home, record: Record) -> None:
    """Replaces what the installer remembers; it survives a power cut once this returns."""
    replace_file(home.record, [msgspec.json.encode(record)], mode=0o644)


def read_trial(home: Home) -> Trial | None:
    """Returns the trial that is not closed yet; None where there is none.

    Raises:
        UpdateError: it is damaged, or cannot be read.
    """
    try:
        return msgspec.json.decode(home.trial.read_bytes(), type=Trial)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpdateError(f"{home.trial} cannot be read: {error}: remove it") from None


def write_trial(home: Home, trial: Trial) -> None:
    """Says what is about to be tried; it survives a power cut once this returns."""
    replace_file(home.trial, [msgspec.json.encode(trial)], mode=0o644)


def release_in_use(home: Home) -> bytes:
    """Returns the document of the release that the agent is started from; nothing where that is what was flashed."""
    try:
        return (home.link / "wheels" / MANIFEST).read_bytes()
    except OSError:
        return b""
