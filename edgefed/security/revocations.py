"""What a fleet's authority has taken back, as a member knows it: a file that changes while the member runs."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from cryptography import x509

from edgefed.errors import ConfigError
from edgefed.security.revocation_lists import read_revocation_list

__all__ = ["Revocations"]

_log = logging.getLogger(__name__)


class Revocations:
    """The revocation list in a file, read again whenever the file is another one.

    A list that cannot be read, is not of the authority, or is older than the one before it, changes nothing: what was
    known to be revoked stays so.

    Args:
        path: the file.
        authority: who has to have signed it.

    Raises:
        ConfigError: it cannot be read, or is not of the authority.
    """

    def __init__(self, path: Path, authority: x509.Certificate) -> None:
        self._path = path
        self._authority = authority
        self._number = -1
        self._since: dict[int, datetime] = {}
        self._looked_at = _state_of(path)
        try:
            self._read()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error

    def since(self, serial: int) -> datetime | None:
        """Returns since when a certificate counts no more; None where it was not taken back."""
        found = _state_of(self._path)
        if found != self._looked_at:
            self._looked_at = found
            try:
                self._read()
            except (OSError, ConfigError) as error:
                _log.warning("what was known to be revoked stays so, and nothing new is known: %s", error)
        return self._since.get(serial)

    def _read(self) -> None:
        where = str(self._path)
        since, number = read_revocation_list(self._path.read_bytes(), where, authority=self._authority)
        if number < self._number:
            raise ConfigError(
                f"{where}: list number {number} is older than number {self._number}, which was read before"
            )
        self._since, self._number = since, number


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """Returns what differs once a file was written anew; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
