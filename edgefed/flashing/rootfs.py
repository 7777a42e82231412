"""Flashing a directory that is a board's root file system: NVIDIA's `Linux_for_Tegra/rootfs`, a mounted card, a chroot.

Everything is written beside its place, synced and read back before the first file gets its name. What fails before the
end is undone; what is killed leaves a record that says so, and flashing again with `upgrade` finishes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edgefed.errors import FlashError
from edgefed.files import hash_file, sync_directory, temporary_beside
from edgefed.flashing.changes import Changes
from edgefed.flashing.manifest import File
from edgefed.flashing.tree import Entry

__all__ = ["DirectoryTree", "write"]

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
_COPY_BYTES = 1 << 20
_SPARE_BYTES = 1 << 20
_DIRECTORY_MODE = 0o755

Progress = Callable[[int], None]
"""Called with the number of bytes that were written since the last call."""


class DirectoryTree:
    """A root file system that is a directory here.

    Raises:
        FlashError: it is none.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FlashError(f"{root}: is not a directory; name the one that is the board's root")
        self.root = root.resolve()
        if self.root == Path("/"):
            raise FlashError("/ is this machine's own root: name a board's")

    @property
    def name(self) -> str:
        """What the user calls it."""
        return str(self.root)

    def host_path(self, path: str) -> Path:
        """Returns where a path of the board is here."""
        return self.root / path.lstrip("/")

    def lookup(self, path: str) -> Entry | None:
        """Returns what is at the path itself, or None."""
        here = self.host_path(path)
        try:
            status = here.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
        target = str(here.readlink()) if kind == "link" else ""
        return Entry(kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, target)  # type: ignore[arg-type]

    def expect(self, paths: Iterable[str]) -> None:
        """Does nothing: looking up is fast here."""

    def read(self, path: str, limit_bytes: int | None = None) -> bytes:
        """Returns a file's content, or its beginning."""
        with self.host_path(path).open("rb") as file:
            return file.read(-1 if limit_bytes is None else limit_bytes)

    def sha256(self, path: str) -> str:
        """Returns the sha256 of a file's content, as 64 hexadecimal digits."""
        return hash_file(self.host_path(path))


def write(tree: DirectoryTree, changes: Changes, progress: Progress = lambda _: None) -> None:
    """Does to a directory what is to be done. Files get the owner that the root directory itself has.

    Raises:
        FlashError: there is no space, or what was written does not read back the same.
        OSError: the system refuses; as after any other exception, the directory is as it was.
    """
    free_bytes = shutil.disk_usage(tree.root).free
    if changes.size_bytes + _SPARE_BYTES > free_bytes:
        raise FlashError(f"{tree.name}: {changes.size_bytes} bytes are to be written, and {free_bytes} are free")
    with contextlib.ExitStack() as undo:
        _place(tree, changes.record_file(complete=False), undo, progress)
        staged = [(_stage(tree, file, undo, progress), tree.host_path(file.path)) for file in changes.write]
        for temporary, path in staged:
            _rename(temporary, path, undo)
        for link in changes.links:
            path = tree.host_path(link.path)
            _make_directories(tree, path.parent, undo)
            path.symlink_to(link.target)
            undo.callback(path.unlink)
            _own(tree, path)
        for parent in {path.parent for _, path in staged} | {
            tree.host_path(link.path).parent for link in changes.links
        }:
            sync_directory(parent)
        _place(tree, changes.record_file(complete=True), undo, progress)
        undo.pop_all()
    for path_on_board in changes.remove:
        tree.host_path(path_on_board).unlink(missing_ok=True)
    for file in (*changes.write, changes.record_file(complete=True)):
        for leftover in _beside(tree.host_path(file.path)):
            leftover.unlink()


def _place(tree: DirectoryTree, file: File, undo: contextlib.ExitStack, progress: Progress) -> None:
    path = tree.host_path(file.path)
    _rename(_stage(tree, file, undo, progress), path, undo)
    sync_directory(path.parent)


def _stage(tree: DirectoryTree, file: File, undo: contextlib.ExitStack, progress: Progress) -> Path:
    """Writes a file under a temporary name beside its place, reads it back, and returns that name."""
    path = tree.host_path(file.path)
    _make_directories(tree, path.parent, undo)
    temporary = temporary_beside(path)
    undo.callback(temporary.unlink, missing_ok=True)
    digest = hashlib.sha256()
    with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w+b") as target:
        for block in _blocks(file.source):
            target.write(block)
            progress(len(block))
        target.flush()
        _own(tree, temporary)
        os.fchmod(target.fileno(), file.mode)
        os.fsync(target.fileno())
        os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that the card is read, not the cache
        target.seek(0)
        while block := target.read(_COPY_BYTES):
            digest.update(block)
    if digest.hexdigest() != file.sha256:
        raise FlashError(
            f"{path}: what was written does not read back the same: is the card worn, or a wheel changing?"
        )
    return temporary


def _blocks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            yield block


def _rename(temporary: Path, path: Path, undo: contextlib.ExitStack) -> None:
    """Gives a file its name; what had it before can be brought back until the leftovers are removed."""
    if path.exists():
        backup = temporary_beside(path)
        os.link(path, backup)
        temporary.replace(path)
        undo.callback(backup.replace, path)
    else:
        temporary.rename(path)
        undo.callback(path.unlink)


def _beside(path: Path) -> list[Path]:
    """Returns the temporary files of a path, of this flashing and of one that was killed."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}")
    return [found for found in path.parent.iterdir() if pattern.fullmatch(found.name)]


def _make_directories(tree: DirectoryTree, directory: Path, undo: contextlib.ExitStack) -> None:
    if directory.is_dir():
        return
    _make_directories(tree, directory.parent, undo)
    directory.mkdir()
    undo.callback(directory.rmdir)
    directory.chmod(_DIRECTORY_MODE)
    _own(tree, directory)


def _own(tree: DirectoryTree, path: Path) -> None:
    owner = tree.root.stat()
    os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
