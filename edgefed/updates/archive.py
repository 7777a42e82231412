"""How a bundle is laid out: a tar archive in which every byte follows from the manifest.

First ``release.json`` with its signature, then the lock, then the wheels in the order of their names (`tar tf` lists
them). Owner, mode and time are the same in all of them, so the same input gives the same bytes. A reader takes nothing
from the archive's own headers but the size of the manifest: it knows from the manifest what headers and padding have to
say, and compares. So there is no second name, no path, no link and no gap to hide something in.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgefed.errors import UpdateError
from edgefed.updates.release import LOCK, MANIFEST, Part, Release

__all__ = ["MAX_BUNDLE_BYTES", "Member", "Reader", "members", "written"]

MAX_BUNDLE_BYTES = 8 << 30
"""With torch for CUDA in it, a bundle has three or four GiB."""

_MAX_MANIFEST_BYTES = 1 << 20
_BLOCK_BYTES = tarfile.BLOCKSIZE
_SIZE_FIELD = slice(124, 135)  # octal digits, in the header that GNU tar and POSIX lay out alike
_END = bytes(2 * _BLOCK_BYTES)
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """What the archive has to hold at one place."""

    name: str
    size_bytes: int
    sha256: str

    @property
    def header(self) -> bytes:
        """What stands before it."""
        return _header(self.name, self.size_bytes)

    @property
    def padding(self) -> bytes:
        """What stands behind it."""
        return _padding(self.size_bytes)


def members(release: Release) -> tuple[Member, ...]:
    """Returns what follows the manifest."""
    lock = Member(LOCK, release.lock.size_bytes, release.lock.sha256)
    return (lock, *(Member(wheel.name, wheel.size_bytes, wheel.sha256) for wheel in release.wheels))


def written(release: Release, manifest: bytes, lock: bytes, wheels: Iterable[Path]) -> Iterator[bytes]:
    """Yields an archive, piece by piece.

    Args:
        release: what the manifest says.
        manifest: its bytes, with the signature.
        lock: the requirements file.
        wheels: in the release's order.

    Raises:
        UpdateError: a wheel is not what the release says.
    """
    for name, content in ((MANIFEST, manifest), (LOCK, lock)):
        yield _header(name, len(content)) + content + _padding(len(content))
    for part, file in zip(release.wheels, wheels, strict=True):
        yield _header(part.name, part.size_bytes)
        yield from _content(file, part)
        yield _padding(part.size_bytes)
    yield _END


class Reader:
    """Goes through an archive from its beginning to its end.

    Args:
        file: the archive, at its beginning.
        where: its name, for messages.

    Raises:
        UpdateError: it is larger than a bundle may be.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where
        self._size_bytes = os.fstat(file.fileno()).st_size
        if self._size_bytes > MAX_BUNDLE_BYTES:
            raise UpdateError(f"{where} has {self._size_bytes} bytes, and no bundle has more than {MAX_BUNDLE_BYTES}")

    def manifest(self) -> bytes:
        """Returns the manifest, which nobody has verified yet."""
        header = self._exactly(_BLOCK_BYTES)
        field = header[_SIZE_FIELD]
        size_bytes = int(field, 8) if not field.strip(b"01234567") else 0
        if not 0 < size_bytes <= _MAX_MANIFEST_BYTES or header != _header(MANIFEST, size_bytes):
            raise UpdateError(f"{self._where} is no bundle of a release: `edgefed fleet update` makes them")
        content = self._exactly(size_bytes)
        self._expect(_padding(size_bytes), MANIFEST)
        return content

    def rest(self, release: Release) -> None:
        """Checks everything behind the manifest: whether the size is right first, then every byte."""
        following = members(release)
        sizes = (len(member.header) + member.size_bytes + len(member.padding) for member in following)
        whole_bytes = self._file.tell() + sum(sizes) + len(_END)
        if whole_bytes != self._size_bytes:
            raise UpdateError(
                f"{self._where} is not whole: it has {self._size_bytes} bytes, and by its manifest {whole_bytes}"
            )
        for member in following:
            self.member(member, lambda _: None)
        self._expect(_END, "the end")

    def member(self, member: Member, write: Callable[[bytes], object]) -> None:
        """Checks the next member, and hands its content on block by block."""
        self._expect(member.header, member.name)
        digest, left_bytes = hashlib.sha256(), member.size_bytes
        while left_bytes:
            block = self._exactly(min(left_bytes, _READ_BYTES))
            digest.update(block)
            write(block)
            left_bytes -= len(block)
        if digest.hexdigest() != member.sha256:
            raise UpdateError(f"{self._where} is damaged: {member.name} in it has another hash than the manifest says")
        self._expect(member.padding, member.name)

    def _exactly(self, size_bytes: int) -> bytes:
        found = self._file.read(size_bytes)
        if len(found) < size_bytes:
            raise UpdateError(f"{self._where} is no whole bundle: it ends at byte {self._file.tell()}")
        return found

    def _expect(self, wanted: bytes, what: str) -> None:
        if self._exactly(len(wanted)) != wanted:
            raise UpdateError(f"{self._where} is damaged at {what}, before byte {self._file.tell()}")


def _header(name: str, size_bytes: int) -> bytes:
    """Returns a member's header: of one block, or of three where the name is long."""
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % _BLOCK_BYTES)


def _content(file: Path, part: Part) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while block := source.read(_READ_BYTES):
            digest.update(block)
            yield block
    if digest.hexdigest() != part.sha256:
        raise UpdateError(f"{file} was changed while the bundle was written")
