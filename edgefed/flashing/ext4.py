"""An ext4 file system inside an image, read and written by e2fsprogs' debugfs: no mount, no loop device, no root.

debugfs ends with 0 whatever went wrong, and tells it on stderr; so whatever it says there is an error. Its `mkdir` of a
directory that is there loses an inode, its `write` onto a file that is there fails: callers look first.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgefed.errors import FlashError
from edgefed.flashing.partitions import Partition
from edgefed.flashing.tree import Entry

__all__ = ["Ext4Tree", "Superblock", "find_program", "quoted", "read_superblock"]

_SUPERBLOCK_OFFSET, _SUPERBLOCK_BYTES = 1024, 1024
_CLEAN, _ERRORS = 0x1, 0x2
_NEEDS_RECOVERY, _64BIT = 0x4, 0x80
_STAT = re.compile(rb"Type: (\w+(?: \w+)?)\s+Mode:\s+([0-7]+).*?User:\s+(\d+)\s+Group:\s+(\d+)", re.DOTALL)
_FAST_LINK = re.compile(rb'Fast link dest: "(.*)"', re.DOTALL)
_ABSENT = (b"File not found by ext2_lookup", b"Ext2 inode is not a directory")
_BANNER = re.compile(rb"debugfs \d[^\n]*\n")
_ECHO = re.compile(rb'(?m)^debugfs: stat "(.*)"\n')
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a file system says about itself."""

    block_bytes: int
    blocks: int
    free_blocks: int
    free_inodes: int


def read_superblock(image: BinaryIO, partition: Partition, name: str) -> Superblock:
    """Returns the figures of a file system that may be written to.

    Raises:
        FlashError: it was not unmounted cleanly, has errors, or is larger than its partition.
    """
    image.seek(partition.start_bytes + _SUPERBLOCK_OFFSET)
    block = image.read(_SUPERBLOCK_BYTES)
    blocks, _, free_blocks, free_inodes, _, log_size = struct.unpack_from("<IIIIII", block, 4)
    (state,) = struct.unpack_from("<H", block, 58)
    (incompatible,) = struct.unpack_from("<I", block, 96)
    if log_size > 6:
        raise FlashError(f"{name}: the ext4 file system in it is damaged (block size)")
    if incompatible & _64BIT:
        blocks |= struct.unpack_from("<I", block, 0x150)[0] << 32
        free_blocks |= struct.unpack_from("<I", block, 0x158)[0] << 32
    found = Superblock(1024 << log_size, blocks, free_blocks, free_inodes)
    if not state & _CLEAN or state & _ERRORS or incompatible & _NEEDS_RECOVERY:
        what = "has errors" if state & _ERRORS else "was not unmounted cleanly"
        raise FlashError(
            f"{name}: its file system {what}: repair it with e2fsck -fy '{name}?offset={partition.start_bytes}'"
        )
    if found.blocks * found.block_bytes > partition.size_bytes:
        raise FlashError(
            f"{name}: is truncated: the file system has {found.blocks * found.block_bytes} bytes, "
            f"its partition {partition.size_bytes}"
        )
    return found


class Ext4Tree:
    """The root file system in a partition of an image.

    Args:
        image: opened; for writing where `run` shall write.
        partition: which of it.
        name: what the user calls the image.
    """

    def __init__(self, image: BinaryIO, partition: Partition, name: str) -> None:
        self.name = name
        self.partition = partition
        self._fd = image.fileno()
        # By descriptor, so that no character of a file's name can be taken for debugfs' own syntax.
        self._device = f"/dev/fd/{self._fd}?offset={partition.start_bytes}"
        self._debugfs = find_program("debugfs")
        self._known: dict[str, Entry | None] = {}

    def lookup(self, path: str) -> Entry | None:
        """Returns what is at the path itself, or None."""
        if path not in self._known:
            done = self._read_only(f"stat {quoted(path or '/')}")
            absent = any(words in done.stderr for words in _ABSENT)
            if not absent:
                self._refuse(done.stderr)
            self._known[path] = None if absent else self._entry(path, done.stdout)
        return self._known[path]

    def expect(self, paths: Iterable[str]) -> None:
        """Looks many paths up at once, with what they lie in: starting debugfs takes longer than what it does."""
        wanted = {parent for path in paths for parent in _with_parents(path)} - self._known.keys()
        commands = "".join(f"stat {quoted(path)}\n" for path in sorted(wanted))
        command = [self._debugfs, "-c", "-f", "-", self._device]
        done = subprocess.run(
            command, input=os.fsencode(commands), capture_output=True, pass_fds=[self._fd], check=False
        )
        said = [line for line in _BANNER.sub(b"", done.stderr).splitlines() if line.strip()]
        self._refuse(b"\n".join(line for line in said if not any(absent in line for absent in _ABSENT)))
        answers = _ECHO.split(done.stdout)[1:]
        for name, text in zip(answers[::2], answers[1::2], strict=True):
            path = os.fsdecode(name)
            if path in wanted:
                self._known[path] = self._entry(path, text) if _STAT.search(text) else None

    def _entry(self, path: str, text: bytes) -> Entry:
        """Returns what debugfs' `stat` says of a path."""
        found = _STAT.search(text)
        if found is None:
            raise FlashError(f"{self.name}: debugfs says nothing about {path}")
        kind, mode = found[1].decode(), int(found[2], 8) & 0o7777
        owner = int(found[3]), int(found[4])
        if kind == "symlink":
            fast = _FAST_LINK.search(text)
            target = fast[1] if fast else self._read_only(f"cat {quoted(path)}").stdout
            return Entry("link", mode, *owner, os.fsdecode(target))
        if kind in ("regular", "directory"):
            return Entry("file" if kind == "regular" else "directory", mode, *owner)
        return Entry("other", mode, *owner)

    def read(self, path: str, limit_bytes: int | None = None) -> bytes:
        """Returns a file's content, or its beginning."""
        with closing(_Output(self, path)) as output:
            return output.read(-1 if limit_bytes is None else limit_bytes)

    def sha256(self, path: str) -> str:
        """Returns the sha256 of a file's content, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        with closing(_Output(self, path)) as output:
            while block := output.read(_READ_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def dump(self, paths: Sequence[str], directory: Path) -> list[Path]:
        """Copies small files out of the image into a directory, and returns where they are."""
        copies = [directory / str(number) for number in range(len(paths))]
        pairs = zip(paths, copies, strict=True)
        text = "".join(f"dump {quoted(path)} {quoted(str(copy))}\n" for path, copy in pairs)
        command = [self._debugfs, "-c", "-f", "-", self._device]
        done = subprocess.run(command, input=os.fsencode(text), capture_output=True, pass_fds=[self._fd], check=False)
        self._refuse(done.stderr)
        return copies

    def run(self, commands: Sequence[str]) -> None:
        """Has debugfs write.

        Raises:
            FlashError: it says that something went wrong.
        """
        command = [self._debugfs, "-w", "-f", "-", self._device]
        text = os.fsencode("".join(f"{line}\n" for line in commands))
        done = subprocess.run(command, input=text, capture_output=True, pass_fds=[self._fd], check=False)
        self._known.clear()
        self._refuse(done.stderr)

    def check(self) -> None:
        """Has e2fsck look at the whole file system, changing nothing.

        Raises:
            FlashError: it finds something.
        """
        command = [find_program("e2fsck"), "-fn", self._device]
        done = subprocess.run(command, capture_output=True, pass_fds=[self._fd], check=False)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
            raise FlashError(
                f"{self.name}: e2fsck finds faults in its file system, and nothing was written: "
                f"repair the image with e2fsck -fy first ({'; '.join(said[1:5])})"
            )

    def reading(self, request: str) -> list[str]:
        """Returns the command line that has debugfs do one thing without writing; -c leaves out the bitmaps."""
        return [self._debugfs, "-c", "-R", request, self._device]

    def _read_only(self, request: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self.reading(request), capture_output=True, pass_fds=[self._fd], check=False)

    def _refuse(self, said: bytes) -> None:
        said = _BANNER.sub(b"", said).strip()
        if said:
            raise FlashError(f"{self.name}: debugfs: {said.decode(errors='replace')}")

    @property
    def descriptor(self) -> int:
        """Of the image, which debugfs inherits."""
        return self._fd


class _Output:
    """The content of a file in an image, as debugfs writes it into a pipe."""

    def __init__(self, tree: Ext4Tree, path: str) -> None:
        command = tree.reading(f"cat {quoted(path)}")
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[tree.descriptor]
        )

    def read(self, size_bytes: int) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.read(size_bytes)

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.kill()  # of a large file only the beginning may have been wanted
        self._process.wait()


def _with_parents(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def quoted(text: str) -> str:
    """Returns a name as debugfs' command lines take it.

    Raises:
        FlashError: there is no way to write it there.
    """
    if '"' in text or "\n" in text:
        raise FlashError(f"{text!r} has a character in its name that debugfs does not take")
    return f'"{text}"'


def find_program(name: str) -> str:
    """Returns where a program of e2fsprogs is.

    Raises:
        FlashError: it is not installed.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise FlashError(f"this needs the program {name}: install e2fsprogs")
    return path
