"""The one place that says which files edgefed writes onto a board: their paths, modes and contents.

What is the same on every board lies in `files/` beside this module, in the tree that it has on the board.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from edgefed import __version__
from edgefed.devices.flashed import FLASH_RECORD
from edgefed.errors import FlashError
from edgefed.files import hash_file
from edgefed.flashing import agent_toml
from edgefed.flashing.board import Board
from edgefed.flashing.wheelhouse import Wheel, lock
from edgefed.flashing.wifi import Wifi

__all__ = [
    "RECORD",
    "REGULATORY",
    "WHEELHOUSE",
    "WIFI",
    "File",
    "FileRecord",
    "Installation",
    "Link",
    "Manifest",
    "Record",
    "manifest",
    "read_record",
]

RECORD = FLASH_RECORD
WHEELHOUSE = "/opt/edgefed/wheelhouse"
WIFI = "/etc/NetworkManager/system-connections/edgefed-wifi.nmconnection"
REGULATORY = "/etc/modprobe.d/edgefed-wifi.conf"
_WANTS = "/etc/systemd/system/multi-user.target.wants"
_UNITS = ("edgefed-agent.service", "edgefed-firstboot.service", "edgefed-update.path")
_WIFI_UNIT = "edgefed-wifi.service"
_PROGRAMS = "/opt/edgefed/bin/"
_PUBLIC, _PROGRAM, _SECRET = 0o644, 0o755, 0o600


@dataclass(frozen=True)
class File:
    """A file on the board. It belongs to root, whose number is known before the board has ever started.

    Attributes:
        path: absolute, on the board.
        source: its content, or the file here that has it.
        mode: its permission bits.
    """

    path: str
    source: bytes | Path
    mode: int = _PUBLIC

    @cached_property
    def sha256(self) -> str:
        """Of the content, as 64 hexadecimal digits."""
        return hashlib.sha256(self.source).hexdigest() if isinstance(self.source, bytes) else hash_file(self.source)

    @property
    def size_bytes(self) -> int:
        """Of the content."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link on the board: where it is, and what it says."""

    path: str
    target: str


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was written at a path: the content's sha256 and the permission bits (octal)."""

    sha256: str
    mode: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The document that stays on the board: what flashing wrote, so that it can be told from what others changed.

    Attributes:
        edgefed: the version that flashed.
        board: what it was flashed for.
        files: by path.
        links: targets by path.
        complete: whether flashing came to its end.
        replaced: by path, what files had before a flashing that has not come to its end.
    """

    edgefed: str
    board: str
    files: dict[str, FileRecord]
    links: dict[str, str]
    complete: bool = True
    replaced: dict[str, FileRecord] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that is written; `record` stands for all of it."""

    board: Board
    files: tuple[File, ...]
    links: tuple[Link, ...]

    def record(self) -> Record:
        """Returns the document that stays on the board."""
        return Record(
            edgefed=__version__,
            board=self.board.words,
            files={file.path: FileRecord(sha256=file.sha256, mode=f"{file.mode:04o}") for file in self.files},
            links={link.path: link.target for link in self.links},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What is particular to one board.

    Attributes:
        wheels: of the agent's environment.
        agent_toml: its configuration; None leaves the one that an upgraded board has.
        password: the broker's password file.
        ca: the authority's certificate (PEM).
        certificate, key: the device's own (PEM); both or neither.
        token: the file of a claim token, by which the board gets its certificate itself.
        wifi: a network to join.
    """

    wheels: tuple[Wheel, ...]
    agent_toml: bytes | None = None
    password: bytes | None = None
    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    token: bytes | None = None
    wifi: Wifi | None = None


def manifest(installation: Installation, board: Board) -> Manifest:
    """Returns what is written onto a board, in the order of paths."""
    files = [*_constant_files(), *_own_files(installation)]
    files += [File(f"{WHEELHOUSE}/{wheel.path.name}", wheel.path) for wheel in installation.wheels]
    files.append(File(f"{WHEELHOUSE}/requirements.lock", lock(installation.wheels).encode()))
    has_country = installation.wifi is not None and installation.wifi.country
    units = (*_UNITS, _WIFI_UNIT) if has_country else _UNITS
    links = tuple(Link(f"{_WANTS}/{unit}", f"/etc/systemd/system/{unit}") for unit in units)
    return Manifest(board=board, files=tuple(sorted(files, key=lambda file: file.path)), links=links)


def read_record(text: bytes, where: str) -> Record:
    """Returns what an earlier flashing wrote down.

    Raises:
        FlashError: it is damaged.
    """
    try:
        return msgspec.json.decode(text, type=Record)
    except msgspec.DecodeError as error:
        raise FlashError(
            f"{where}: {RECORD} is damaged ({error}), so nobody can tell what of the installation was changed since: "
            "move it away, with the files that edgefed wrote"
        ) from None


def _constant_files() -> Iterator[File]:
    tree = Path(__file__).parent / "files"
    for source in tree.rglob("*"):
        if source.is_file():
            path = f"/{source.relative_to(tree)}"
            yield File(path, source.read_bytes(), _PROGRAM if path.startswith(_PROGRAMS) else _PUBLIC)


def _own_files(installation: Installation) -> Iterator[File]:
    wifi = installation.wifi
    own = (
        (agent_toml.CONFIG, installation.agent_toml, 0o640),
        (agent_toml.PASSWORD, installation.password, _SECRET),
        (agent_toml.CA, installation.ca, _PUBLIC),
        (agent_toml.CERTIFICATE, installation.certificate, _PUBLIC),
        (agent_toml.KEY, installation.key, _SECRET),
        (agent_toml.CLAIM_TOKEN, installation.token, _SECRET),
        (WIFI, wifi.keyfile().encode() if wifi else None, _SECRET),
        (REGULATORY, wifi.regulatory_options().encode() if wifi and wifi.country else None, _PUBLIC),
    )
    for path, content, mode in own:
        if content is not None:
            yield File(path, content, mode)
