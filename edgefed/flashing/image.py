"""Flashing a disk image: a copy of it gets the agent, is checked as a whole, and only then its name.

The agent's files all go to the root file system; the boot partition is left as it is.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgefed.errors import FlashError
from edgefed.files import hash_file, sync_directory, temporary_beside
from edgefed.flashing.changes import Changes
from edgefed.flashing.disk_files import SUFFIXES, compression, copy_image
from edgefed.flashing.ext4 import Ext4Tree, quoted, read_superblock
from edgefed.flashing.manifest import File, Link
from edgefed.flashing.partitions import find_partitions
from edgefed.flashing.tree import follow

__all__ = ["flash_image", "output_of", "root_tree", "write"]

_DIRECTORY_MODE = 0o755
_TYPE_BITS = {"file": 0o100000, "directory": 0o040000}
_SMALL_BYTES = 1 << 20  # read back together; larger ones through a pipe each
_SPARE_SHARE = 0.02  # of the free blocks: directories grow, and extents of fragmented files take blocks of their own

Progress = Callable[[int], None]
Plan = Callable[[Ext4Tree], Changes]
"""Finds out what is to be done to the root file system of an image."""


def output_of(source: Path, output: Path | None) -> Path:
    """Returns where the flashed image goes: in the place of a plain one, beside a compressed one.

    Raises:
        FlashError: another file is there.
    """
    kind = compression(source)
    target = output or (source.with_suffix("") if kind and source.suffix == SUFFIXES[kind] else source)
    if target.exists() and (kind or not target.samefile(source)):
        raise FlashError(f"{target}: is there already: name another --output, or move it away")
    if kind and target == source:
        raise FlashError(f"{source}: is compressed: name the --output")
    return target


def flash_image(
    source: Path,
    target: Path | None,
    plan: Plan,
    *,
    partition: int | None = None,
    progress: Progress = lambda _: None,
) -> Changes:
    """Puts the agent onto a copy of an image, and returns what was done.

    Args:
        source: the image, which may be compressed; it is not changed, unless it is `target` too.
        target: where the flashed one goes; None finds out only what would be done.
        plan: says what is to be done.
        partition: number of the one with the root file system; None takes the only one that has one.
        progress: called with the number of bytes done since the last call: of the source, then of what is written.

    Raises:
        FlashError: the image cannot take the agent. There is then no new file, and the old one is as it was.
    """
    changes = None
    if not compression(source):  # look before copying: most of what is wrong shows at once
        with source.open("rb") as image:
            changes = plan(root_tree(image, str(source), partition))
        if target is None:
            return changes
    with _new_file(target) as image:
        copy_image(source, image, progress)
        tree = root_tree(image, str(source), partition)
        changes = changes or plan(tree)
        if target is not None:
            write(image, tree, changes, progress)
            tree.check()
            os.fchmod(image.fileno(), source.stat().st_mode & 0o777)
            os.fsync(image.fileno())
    return changes


@contextmanager
def _new_file(target: Path | None) -> Iterator[BinaryIO]:
    """Gives a new file that is renamed to `target` when the block ends well, and is gone when it does not."""
    where = temporary_beside(target or Path(tempfile.gettempdir()) / "edgefed.img")
    try:
        with where.open("x+b", buffering=0) as image:
            yield image  # unbuffered: debugfs looks at the same file
        if target is not None:
            where.replace(target)
            sync_directory(target.absolute().parent)
    finally:
        where.unlink(missing_ok=True)


def root_tree(image: BinaryIO, name: str, number: int | None = None) -> Ext4Tree:
    """Returns the root file system in an image.

    Args:
        image: opened; for writing where the tree shall be written to.
        name: what the user calls it.
        number: of the partition; None takes the only one with a root file system.

    Raises:
        FlashError: there is none, or more than one, or it must be repaired first.
    """
    partitions = find_partitions(image, name)
    seen = ", ".join(f"{part.number}: {part.holds or 'unknown'}" for part in partitions)
    chosen = [part for part in partitions if number in (None, part.number)]
    if not chosen:
        raise FlashError(f"{name}: has no partition {number} ({seen})")
    trees = [Ext4Tree(image, part, name) for part in chosen if part.holds == "ext4"]
    if len(trees) == 1:  # debugfs would only say that it does not like it
        read_superblock(image, trees[0].partition, name)
    roots = trees if number is not None else [tree for tree in trees if tree.lookup(follow(tree, "/bin/sh"))]
    if not roots:
        raise FlashError(f"{name}: no partition holds a root file system on ext4 ({seen})")
    if len(roots) > 1:
        numbers = " and ".join(str(tree.partition.number) for tree in roots)
        raise FlashError(f"{name}: partitions {numbers} each hold a root file system: choose one with --partition")
    read_superblock(image, roots[0].partition, name)
    return roots[0]


def write(image: BinaryIO, tree: Ext4Tree, changes: Changes, progress: Progress = lambda _: None) -> None:
    """Does to the file system in an image what is to be done, and reads it back.

    The image is one that nobody needs when this fails: a copy.

    Raises:
        FlashError: there is no space in the file system, or debugfs fails, or what was written reads back differently.
    """
    files = [*changes.write, changes.record_file(complete=True)]
    tree.expect([*(file.path for file in files), *(link.path for link in changes.links)])
    directories = _missing_directories(tree, [*files, *changes.links])
    _check_space(image, tree, files, len(directories))
    commands = [command for path in directories for command in _made(path)]
    with tempfile.TemporaryDirectory() as staging:
        for number, file in enumerate(files):
            source = Path(staging) / str(number)
            if isinstance(file.source, bytes):
                source.write_bytes(file.source)
            else:
                source.symlink_to(file.source.absolute())
            if tree.lookup(file.path) is not None:
                commands.append(f"rm {quoted(file.path)}")
            commands.append(f"write {quoted(str(source))} {quoted(file.path)}")
            commands += _owned(file.path, _TYPE_BITS["file"] | file.mode)
        for link in changes.links:
            commands.append(f"symlink {quoted(link.path)} {quoted(link.target)}")
        commands += [f"rm {quoted(path)}" for path in changes.remove]
        tree.run(commands)
    tree.expect(file.path for file in files)
    with tempfile.TemporaryDirectory() as name:
        small = [file.path for file in files if file.size_bytes <= _SMALL_BYTES]
        copies = dict(zip(small, tree.dump(small, Path(name)), strict=True))
        for file in files:
            found = hash_file(copies[file.path]) if file.path in copies else tree.sha256(file.path)
            _check(tree, file, found)
            progress(file.size_bytes)


def _missing_directories(tree: Ext4Tree, things: list[File | Link]) -> list[str]:
    """Returns the directories that things lie in and that are not there, parents before children."""
    missing: dict[str, None] = {}
    for thing in things:
        parts = thing.path.strip("/").split("/")[:-1]
        for count in range(1, len(parts) + 1):
            path = "/" + "/".join(parts[:count])
            if path not in missing and tree.lookup(path) is None:
                missing[path] = None
    return list(missing)


def _made(directory: str) -> list[str]:
    return [f"mkdir {quoted(directory)}", *_owned(directory, _TYPE_BITS["directory"] | _DIRECTORY_MODE)]


def _owned(path: str, mode: int) -> list[str]:
    """Returns the commands that make a new inode root's, with its type bits, which debugfs wants to be told again."""
    fields = (("mode", f"0{mode:o}"), ("uid", "0"), ("gid", "0"))
    return [f"sif {quoted(path)} {field} {value}" for field, value in fields]


def _check_space(image: BinaryIO, tree: Ext4Tree, files: list[File], directories: int) -> None:
    superblock = read_superblock(image, tree.partition, tree.name)
    blocks = directories + sum(math.ceil(file.size_bytes / superblock.block_bytes) for file in files)
    free_blocks = math.floor(superblock.free_blocks * (1 - _SPARE_SHARE))
    if blocks > free_blocks:
        raise FlashError(
            f"{tree.name}: {blocks * superblock.block_bytes} bytes are to be written, and its root file system has "
            f"{free_blocks * superblock.block_bytes}: make image, partition and file system larger (truncate, "
            "parted resizepart, resize2fs)"
        )
    if len(files) + directories > superblock.free_inodes:
        raise FlashError(f"{tree.name}: its root file system has no room for {len(files) + directories} more files")


def _check(tree: Ext4Tree, file: File, sha256: str) -> None:
    entry = tree.lookup(file.path)
    if entry is None or (entry.kind, entry.mode, entry.uid, entry.gid) != ("file", file.mode, 0, 0):
        raise FlashError(f"{tree.name}: {file.path} was written, and is not there as it should be: {entry}")
    if sha256 != file.sha256:
        raise FlashError(f"{tree.name}: {file.path} does not read back as it was written: is a wheel changing?")
