"""Copies of disk images: compressed ones unpacked, plain ones copied, and what is empty left empty (sparse)."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import shutil
import stat
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from edgefed.errors import FlashError

__all__ = ["SUFFIXES", "compression", "copy_image"]

SUFFIXES = {"xz": ".xz", "zstd": ".zst", "gzip": ".gz"}
_MAGICS = {b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}
_PIECE_BYTES = 1 << 20
_COPY_BYTES = 64 << 20

Progress = Callable[[int], None]


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def compression(path: Path) -> str:
    """Returns how a file is compressed: xz, zstd, gzip, or an empty text.

    Raises:
        FlashError: there is no such file, or it is a device or a directory.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise FlashError(f"{path}: cannot be read: {error.strerror}") from error
    if stat.S_ISBLK(status.st_mode):
        raise FlashError(f"{path}: is a device: mount its root partition and use `edgefed flash rootfs`")
    if not stat.S_ISREG(status.st_mode):
        raise FlashError(f"{path}: is not a file")
    with path.open("rb") as file:
        start = file.read(8)
    return next((name for magic, name in _MAGICS.items() if start.startswith(magic)), "")


def copy_image(source: Path, target: BinaryIO, progress: Progress) -> None:
    """Writes the unpacked image into an empty file.

    Args:
        source: plain, or compressed with xz, zstd or gzip.
        target: opened for writing.
        progress: called with the number of bytes of the source that were read since the last call.

    Raises:
        FlashError: the source is cut off or damaged, or there is no space for the copy.
    """
    kind = compression(source)
    try:
        if kind:
            with source.open("rb") as file, _unpacked(file, kind, source) as unpacked:
                _write_sparse(unpacked, target, file, progress)
        else:
            _check_space(source, target)
            _copy_sparse(source, target, progress)
        target.flush()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FlashError(
                f"{target.name}: there is no space for the image: free some, or name another --output"
            ) from None
        raise


def _check_space(source: Path, target: BinaryIO) -> None:
    needed_bytes = source.stat().st_blocks * 512
    free_bytes = shutil.disk_usage(Path(target.name).parent).free
    if needed_bytes > free_bytes:
        raise FlashError(f"{target.name}: a copy takes {needed_bytes} bytes, and {free_bytes} are free: see --output")


def _copy_sparse(source: Path, target: BinaryIO, progress: Progress) -> None:
    with source.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        position = 0
        while position < size_bytes:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nothing but a hole follows
                    raise
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            progress(start - position)
            position = start
            while position < end:
                copied = _copy_range(file, target, position, min(_COPY_BYTES, end - position))
                _start_writing(target, position, copied)
                position += copied
                progress(copied)
        progress(size_bytes - position)
        os.ftruncate(target.fileno(), size_bytes)


def _copy_range(source: BinaryIO, target: BinaryIO, offset: int, count: int) -> int:
    try:
        copied = os.copy_file_range(source.fileno(), target.fileno(), count, offset, offset)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        copied = os.pwrite(target.fileno(), os.pread(source.fileno(), min(count, _PIECE_BYTES), offset), offset)
    if copied == 0:
        raise FlashError(f"{source.name}: became shorter while it was read")
    return copied


def _start_writing(target: BinaryIO, offset: int, count: int) -> None:
    """Has the kernel begin to write a part of a file to the disk, so that the sync at the end has little left to do."""
    os.posix_fadvise(target.fileno(), offset, count, os.POSIX_FADV_DONTNEED)


@contextmanager
def _unpacked(file: BinaryIO, kind: str, path: Path) -> Iterator[_Readable]:
    damaged = FlashError(f"{path}: is cut off or damaged: it cannot be unpacked; get it again")
    try:
        if kind == "zstd":
            with _zstd(path, file, damaged) as output:
                yield output
        else:
            with lzma.LZMAFile(file) if kind == "xz" else gzip.GzipFile(fileobj=file) as output:
                yield output
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged from error


@contextmanager
def _zstd(path: Path, file: BinaryIO, damaged: FlashError) -> Iterator[_Readable]:
    program = shutil.which("zstd")
    if program is None:
        raise FlashError(f"{path}: this needs the program zstd: install it, or unpack the image yourself")
    process = subprocess.Popen([program, "-dcq"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        yield process.stdout
        if process.wait() != 0:
            raise damaged
    finally:
        process.stdout.close()
        process.kill()
        process.wait()


def _write_sparse(source: _Readable, target: BinaryIO, compressed: BinaryIO, progress: Progress) -> None:
    """Writes what can be read from `source`, leaving pieces of zeros out; progress is that of `compressed`."""
    zeros = bytes(_PIECE_BYTES)
    position, read_before = 0, 0
    while piece := source.read(_PIECE_BYTES):
        if piece != zeros[: len(piece)]:
            _write_whole(target, piece, position)
            _start_writing(target, position, len(piece))
        position += len(piece)
        read_now = os.lseek(compressed.fileno(), 0, os.SEEK_CUR)  # shared with the program that unpacks
        progress(read_now - read_before)
        read_before = read_now
    os.ftruncate(target.fileno(), position)


def _write_whole(target: BinaryIO, piece: bytes, position: int) -> None:
    """Writes a piece to its end: a disk that has room for a part of it takes that, and says so only the next time."""
    left = memoryview(piece)
    while left:
        written = os.pwrite(target.fileno(), left, position)
        left, position = left[written:], position + written
