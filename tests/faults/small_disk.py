"""A file system of a few megabytes that can be filled to its last byte, and given room again."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["SmallDisk", "may_mount", "small_disk"]

_BLOCK_BYTES = 4096


class SmallDisk:
    """A mounted file system.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Takes every byte that is left."""
        with self._ballast.open("ab", buffering=0) as file:
            for size_bytes in (1 << 20, _BLOCK_BYTES, 1):
                with contextlib.suppress(_Full):
                    while True:
                        _write(file.fileno(), b"\0" * size_bytes)

    def free(self) -> None:
        """Gives it back."""
        self._ballast.unlink()


class _Full(Exception):
    pass


def _write(file: int, data: bytes) -> None:
    try:
        os.write(file, data)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _Full from None


@contextlib.contextmanager
def small_disk(path: Path, *, size_bytes: int) -> Iterator[SmallDisk]:
    """Mounts a file system of that size in memory at `path`, which is made, and takes it away in the end."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)], check=True)
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def may_mount(scratch: Path) -> bool:
    """Whether this process may mount file systems."""
    try:
        with small_disk(scratch / "may-mount", size_bytes=_BLOCK_BYTES):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
