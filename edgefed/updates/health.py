"""How an agent shows whoever started it that it has come up: a small file in its state directory.

It is written at the start, and when the connection to the broker comes and goes, and only then: a board's flash is
spared, and a hung agent is the watchdog's concern. It is no secret and no proof. It is what the installer of an update
goes by, together with what the service manager knows.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import msgspec

from edgefed import __version__
from edgefed.files import temporary_beside

__all__ = ["FILE", "Health", "HealthFile", "read_health"]

FILE = "health.json"
_MAX_BYTES = 4096
_log = logging.getLogger(__name__)


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent is.

    Attributes:
        version: of edgefed.
        environment: name of the directory of the Python environment that it runs in.
        pid: its process.
        connected: whether it has a connection to the broker.
        connections: how many it has had.
    """

    version: str
    environment: str
    pid: int
    connected: bool = False
    connections: int = 0


class HealthFile:
    """An agent's own health, shown in a directory.

    Args:
        directory: the agent's state directory.
        prefix: of this process's Python environment.
    """

    def __init__(self, directory: Path, prefix: str = sys.prefix) -> None:
        self._path = directory / FILE
        # Looked up now: later the link that the agent was started by may lead elsewhere.
        name = Path(prefix).resolve().name
        self._health = Health(version=__version__, environment=name, pid=os.getpid())

    def started(self) -> None:
        """Shows that the process runs; what another one has shown no longer counts."""
        self._show(self._health)

    def connected(self) -> None:
        """Shows that there is a connection, and not the one there was."""
        count = self._health.connections + 1
        self._show(msgspec.structs.replace(self._health, connected=True, connections=count))

    def disconnected(self) -> None:
        """Shows that there is no connection."""
        self._show(msgspec.structs.replace(self._health, connected=False))

    def _show(self, health: Health) -> None:
        """Replaces the file, whole but unsynced: after a power cut another process has its own to show."""
        self._health = health
        temporary = temporary_beside(self._path)
        try:
            temporary.write_bytes(msgspec.json.encode(health))
            temporary.replace(self._path)
        except OSError as error:
            _log.warning("the agent's health cannot be shown: %s", error)
            temporary.unlink(missing_ok=True)


def read_health(directory: Path) -> Health | None:
    """Returns what an agent shows; None where it shows nothing that can be read.

    The reader may be root, and the directory is the agent's: no link is followed, and little is read.
    """
    try:
        file = os.open(directory / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return msgspec.json.decode(os.read(file, _MAX_BYTES), type=Health)
        finally:
            os.close(file)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
