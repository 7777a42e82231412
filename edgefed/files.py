"""Writing files so that a kill or a power cut leaves the old content or the new, never a mixture; and hashing them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

__all__ = ["hash_file", "remove_leftovers", "replace_file", "sync_directory", "temporary_beside"]

_READ_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")


def hash_file(path: Path) -> str:
    """Returns the sha256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Writes the parts to a new file beside `path`, syncs it and renames it over `path`."""
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def temporary_beside(path: Path) -> Path:
    """Returns a fresh name beside `path`, for what shall take its place once it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def remove_leftovers(directory: Path) -> None:
    """Removes what has a name of `temporary_beside`: a kill left it. Nobody may be writing in the directory."""
    with contextlib.suppress(FileNotFoundError):
        for path in directory.iterdir():
            if not _TEMPORARY.fullmatch(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def sync_directory(path: Path) -> None:
    """Makes renames inside the directory survive a power cut."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
