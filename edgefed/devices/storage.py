"""The storage that state and models lie on: how fast it reads, writes and syncs, and how much is free."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from pathlib import Path

import msgspec
import psutil

from edgefed.devices.measurement import Measurement, absent, measured

__all__ = ["SYNCS", "StorageProfile", "measure_storage", "time_sync"]

_BLOCK_BYTES = 4 << 20
_SYNC_EVERY_BYTES = 4 * _BLOCK_BYTES
SYNCS = 5
"""How often `time_sync` looks."""

_IN_MEMORY = ("tmpfs", "ramfs")


class StorageProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The file system of one directory.

    Attributes:
        total_bytes, free_bytes: of the file system; free to this user.
        file_system: its type, such as `ext4`; "" where /proc does not tell.
        read_bytes_per_s: sequential.
        write_bytes_per_s: sequential, syncs included.
        sync_s: of a small change, until the device says that it is safe.
    """

    total_bytes: int
    free_bytes: int
    file_system: str
    read_bytes_per_s: Measurement
    write_bytes_per_s: Measurement
    sync_s: Measurement


def measure_storage(directory: Path, *, size_bytes: int = 128 << 20, budget_s: float = 3.0) -> StorageProfile:
    """Writes, syncs and reads a file in `directory`, and removes it.

    Args:
        directory: it exists.
        size_bytes: of the file; a slow device gets fewer, and so does one that has less than eight times as much free.
        budget_s: of writing, and of reading.
    """
    usage = psutil.disk_usage(str(directory))
    file_system = _file_system(directory)
    size_bytes = min(size_bytes, usage.free // 8) // _BLOCK_BYTES * _BLOCK_BYTES
    if size_bytes:
        path = directory / f".probe-{os.getpid()}"
        try:
            note = f"; {file_system} is memory, not a device" if file_system in _IN_MEMORY else ""
            written, write, sync = _write(path, size_bytes, budget_s, note)
            read = _read(path, written, budget_s, note)
        except OSError as error:
            write = sync = read = absent(f"a test file could not be written: {error.strerror}")
        finally:
            path.unlink(missing_ok=True)
    else:
        write = sync = read = absent(f"only {usage.free} bytes are free: too few for a test file")
    return StorageProfile(
        total_bytes=usage.total,
        free_bytes=usage.free,
        file_system=file_system,
        read_bytes_per_s=read,
        write_bytes_per_s=write,
        sync_s=sync,
    )


def time_sync(file: int) -> float:
    """Returns the seconds until a change of 4 KiB is safe (fsync), the median of some.

    Args:
        file: descriptor of a file that is open for writing; its first bytes are overwritten.

    Raises:
        OSError: it cannot be written.
    """
    change = os.urandom(4096)
    times_s = []
    for number in range(SYNCS):
        os.pwrite(file, change, number * len(change))
        started_s = time.perf_counter()
        os.fsync(file)
        times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s)


def _write(path: Path, size_bytes: int, budget_s: float, note: str) -> tuple[int, Measurement, Measurement]:
    """Returns the bytes that lie in the file now, the rate, and the time of a sync."""
    block = os.urandom(_BLOCK_BYTES)  # some devices compress
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        started_s, written = time.perf_counter(), 0
        while written < size_bytes and time.perf_counter() - started_s < budget_s:
            written += os.write(file, block)
            if written % _SYNC_EVERY_BYTES == 0:
                os.fdatasync(file)  # or a slow card would take all of it at once, and sync far beyond the budget
        os.fsync(file)
        write_s = time.perf_counter() - started_s
        median_s = time_sync(file)
    finally:
        os.close(file)
    method = f"{written >> 20} MiB in order, synced every {_SYNC_EVERY_BYTES >> 20} MiB{note}"
    return written, measured(written / write_s, method), measured(median_s, f"fsync of 4 KiB, median of {SYNCS}{note}")


def _read(path: Path, size_bytes: int, budget_s: float, note: str) -> Measurement:
    """Returns the rate past the page cache where the file system allows that, else after asking it to forget."""
    method = "in order, past the page cache (O_DIRECT)"
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        method = "in order, after asking the page cache to forget the file"
    try:
        with mmap.mmap(-1, _BLOCK_BYTES) as buffer:  # aligned, as direct reads must be
            started_s, done = time.perf_counter(), 0
            while done < size_bytes and time.perf_counter() - started_s < budget_s:
                count = os.preadv(file, [buffer], done)
                if not count:
                    break
                done += count
            read_s = time.perf_counter() - started_s
    finally:
        os.close(file)
    return measured(done / read_s, f"{done >> 20} MiB {method}{note}")


def _file_system(directory: Path) -> str:
    """Returns the type of the mount that is nearest to the directory."""
    where = directory.absolute()
    best = {partition.mountpoint: partition.fstype for partition in psutil.disk_partitions(all=True)}
    return next((best[str(place)] for place in (where, *where.parents) if str(place) in best), "")
