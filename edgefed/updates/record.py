"""What the installer remembers and the agent may read: one document, replaced whole, in root's directory."""

from __future__ import annotations

import msgspec
from msgspec import field

from edgefed.errors import UpdateError
from edgefed.files import replace_file
from edgefed.updates.places import Home
from edgefed.updates.release import Result

__all__ = ["Installed", "Record", "read_record", "write_record"]


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """The release that runs.

    Attributes:
        release: its name.
        version: of edgefed in it.
        number: of the release.
        id: sha256 of what was signed.
        environment: name of its directory among the environments.
    """

    release: str
    version: str
    number: int
    id: str
    environment: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All that the installer remembers.

    Attributes:
        installed: the release that an update has brought; None while the board runs what was flashed.
        highest_number: of all releases that ran here; older ones are refused.
        result: what came of the latest bundle.
        tries: how often each release that is not installed was tried, by its id.
    """

    installed: Installed | None = None
    highest_number: int = 0
    result: Result | None = None
    tries: dict[str, int] = field(default_factory=dict)


def read_record(home: Home) -> Record:
    """Returns what the installer remembers; an empty record before the first update.

    Raises:
        UpdateError: it is damaged, or cannot be read.
    """
    try:
        return msgspec.json.decode(home.record.read_bytes(), type=Record)
    except FileNotFoundError:
        return Record()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpdateError(
            f"{home.record} cannot be read: {error}; without it an old release could be played again: move it away, "
            "and flash the board anew"
        ) from None


def write_record(home: Home, record: Record) -> None:
    """Replaces what the installer remembers; it survives a power cut once this returns."""
    home.updates.mkdir(mode=0o755, parents=True, exist_ok=True)
    replace_file(home.record, [msgspec.json.encode(record)], mode=0o644)
