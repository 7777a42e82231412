"""The agent's directory of bundles, as root goes about in it: nothing there is followed, opened blindly or written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from edgefed.errors import UpdateError
from edgefed.updates.archive import MAX_BUNDLE_BYTES
from edgefed.updates.places import SUFFIX

__all__ = ["Incoming", "opened"]

_READ_BYTES = 1 << 20
_ROOM = 5
"""A bundle takes its size as a copy, again unpacked, and two to three times as an environment with compiled code."""


class Incoming:
    """A directory that somebody else may change at any time.

    Args:
        directory: its descriptor.
        where: its name, for messages.
    """

    def __init__(self, directory: int, where: Path) -> None:
        self._directory = directory
        self._where = where

    def names(self) -> list[str]:
        """Returns the names of bundles, or of what is called so."""
        with os.scandir(self._directory) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(SUFFIX))

    def copy(self, name: str, to: Path) -> str:
        """Copies a bundle to a place that is ours, and returns the sha256 of the copy.

        Raises:
            UpdateError: it is no file of its own, too large for a bundle, or too large for the disk.
            OSError: the copy cannot be written.
        """
        file = self._open(name)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise UpdateError(f"{self._where / name} is not a file")
            if status.st_nlink != 1:  # a second name for a file that its owner may not read, say
                raise UpdateError(f"{self._where / name} is a file that has other names as well")
            _check_room(status.st_size, str(self._where / name), to.parent)
            return _copied(file, status.st_size, to)
        finally:
            os.close(file)

    def remove(self, name: str) -> None:
        """Removes a bundle, or whatever is there by its name: it shall not come up again."""
        with contextlib.suppress(FileNotFoundError):
            try:
                os.unlink(name, dir_fd=self._directory)
            except IsADirectoryError:
                # A name that is free, whatever else is there, and not too long.
                aside = f"{secrets.token_hex(8)}.refused"
                os.rename(name, aside, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        os.fsync(self._directory)

    def _open(self, name: str) -> int:
        try:
            # Not blocking, so that a pipe by this name does not hold us up.
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
        except OSError as error:
            raise UpdateError(f"{self._where / name} cannot be opened as a file: {error.strerror}") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Incoming | None]:
    """Gives the directory while the block runs; None where there is none.

    Args:
        path: absolute.

    Raises:
        UpdateError: some part of it is a link or no directory.
    """
    directory = _descend(path)
    try:
        yield None if directory is None else Incoming(directory, path)
    finally:
        if directory is not None:
            os.close(directory)


def _descend(path: Path) -> int | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(path.anchor, flags)
    for part in path.relative_to(path.anchor).parts:
        try:
            inner = os.open(part, flags, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UpdateError(
                f"{path}: {part} in it is a link or no directory ({error.strerror}), so nothing is fetched from there"
            ) from None
        finally:
            os.close(directory)
        directory = inner
    return directory


def _check_room(size_bytes: int, where: str, to: Path) -> None:
    if size_bytes > MAX_BUNDLE_BYTES:
        raise UpdateError(f"{where} has {size_bytes} bytes, and no bundle has more than {MAX_BUNDLE_BYTES}")
    room = os.statvfs(to)
    free_bytes = room.f_bavail * room.f_frsize
    if free_bytes < _ROOM * size_bytes:
        raise UpdateError(
            f"{where} has {size_bytes} bytes, and installing it takes about {_ROOM} times that: there are {free_bytes} "
            f"bytes free at {to}"
        )


def _copied(file: int, size_bytes: int, to: Path) -> str:
    """Returns the sha256 of what was copied: never more than the size that there is room for."""
    to.unlink(missing_ok=True)
    digest, left_bytes = hashlib.sha256(), size_bytes
    with os.fdopen(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
        while left_bytes and (block := os.read(file, min(left_bytes, _READ_BYTES))):
            digest.update(block)
            out.write(block)
            left_bytes -= len(block)
    return digest.hexdigest()
