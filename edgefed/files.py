"""Writing files so that a kill or a power cut leaves the old content or the new, never a mixture; and hashing them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from edgefed.errors import ConfigError

__all__ = [
    "check_private",
    "has_room",
    "hash_file",
    "in_shell",
    "is_disk_trouble",
    "remove_leftovers",
    "replace_file",
    "settled_name",
    "sync_directory",
    "sync_file",
    "temporary_beside",
]

_READ_BYTES = 1 << 20
# Full, over a quota, over a limit on files, gone read-only (as ext4 does after an error), failing.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}")


def hash_file(path: Path) -> str:
    """Returns the sha256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def is_disk_trouble(error: BaseException) -> bool:
    """Whether an error is the operating system's word that a disk takes no more, or fails."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def has_room(directory: Path, size_bytes: int) -> bool:
    """Returns whether a file of that size could be written in a directory now.

    Space is set aside for a moment where the file system can do so; nothing is written, so a flash card does not wear.

    Raises:
        OSError: the directory cannot be used for another reason than its disk.
    """
    path = temporary_beside(directory / "room")
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, max(1, size_bytes))
        finally:
            os.close(file)
    except OSError as error:
        if not is_disk_trouble(error):
            raise
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def check_private(path: Path) -> None:
    """Sees to it that nobody but its owner can read a file that holds a secret.

    Raises:
        ConfigError: group or others can.
        OSError: the file is not there.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"{path} holds a secret, and its mode {mode:04o} lets others than its owner at it: "
            f"chmod 600 {in_shell(path)}, and if it was so for long, take the key as known to others and make a new one"
        )


def replace_file(path: Path, parts: Iterable[bytes], *, mode: int = 0o666) -> None:
    """Writes the parts to a new file beside `path`, syncs it and renames it over `path`.

    Args:
        path: what is replaced.
        parts: its new content.
        mode: of the new file, less what the umask takes; 0o600 for a secret.
    """
    temporary = temporary_beside(path)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
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


def settled_name(path: Path) -> Path:
    """Returns the path with what `temporary_beside` made of a name in it taken back: what the user calls it."""
    return Path(*(found[1] if (found := _TEMPORARY.fullmatch(part)) else part for part in path.parts))


def in_shell(path: Path | str) -> str:
    """Returns a path as a shell takes it, for the commands that messages recommend: they are copied from there."""
    return shlex.quote(str(path))


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
    sync_file(path)


def sync_file(path: Path) -> None:
    """Makes what is in a file survive a power cut."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
