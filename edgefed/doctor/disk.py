"""The file system of the agent's state: room, the right to write, and how long a write takes to be safe."""

from __future__ import annotations

import os
from pathlib import Path

from edgefed.devices.storage import SYNCS, time_sync
from edgefed.doctor.findings import Board, Findings, note, ok, problem
from edgefed.files import in_shell, temporary_beside

__all__ = ["look_at_disk"]

_MIB = 1 << 20
_PROBE_BYTES = 1 * _MIB
_LITTLE_BYTES = 1024 * _MIB  # a model of the base size, its adapters and an update on its way
_SLOW_SYNC_S = 0.5  # an update is written, synced and renamed several times


def look_at_disk(board: Board) -> Findings:
    """Yields whether the agent can keep its state where agent.toml says."""
    assert board.options is not None
    state = Path(board.options.state)
    place = _nearest(state)
    if not place.is_dir():
        yield problem(f"state: {place} is no directory", f"remove it, or change state in {board.config}")
        return
    if place != state:
        yield ok(f"state: {state} is not there yet; the agent makes it in {place}")
    room = os.statvfs(place)
    if room.f_flag & os.ST_RDONLY:
        yield problem(
            f"the file system of {place} is read-only",
            "mount it for writing; one that became so by itself has found errors: see `journalctl -k`, and check it",
        )
        return
    free_bytes = room.f_bavail * room.f_frsize
    said = f"{free_bytes // _MIB} MiB free in {place}"
    if free_bytes < _LITTLE_BYTES:
        yield note(f"{said}: little for a model and its updates", "make room: the agent keeps nothing that it can drop")
    else:
        yield ok(said)
    if room.f_files and not room.f_favail:
        yield problem(f"{place} can take no more files: its inodes are used up", "remove small files there")
        return
    yield from _try_to_write(place)


def _try_to_write(place: Path) -> Findings:
    try:
        sync_s = _time_sync(place)
    except PermissionError:
        yield problem(
            f"{place} may not be written by {_who()}",
            f"run the doctor as the agent's user (sudo -u edgefed …); if it is that, chown {in_shell(place)} to it",
        )
    except OSError as error:
        yield problem(f"{_PROBE_BYTES // _MIB} MiB cannot be written in {place}: {error.strerror}", "make room there")
    else:
        said = f"a small change in {place} is safe after {sync_s * 1e3:.1f} ms (fsync, median of {SYNCS})"
        slow = sync_s > _SLOW_SYNC_S
        yield note(f"{said}: slow", "a card that became slow is worn: replace it, or use NVMe") if slow else ok(said)


def _time_sync(place: Path) -> float:
    """Returns the median time of a sync of 4 KiB, after writing a file that is removed again."""
    file = temporary_beside(place / "doctor")
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.unlink(file)  # noqa: PTH108  # at once: nothing stays behind, whatever ends this process
        block = os.urandom(_PROBE_BYTES)
        written = 0
        while written < len(block):
            written += os.write(descriptor, block[written:])
        os.fsync(descriptor)
        return time_sync(descriptor)
    finally:
        os.close(descriptor)


def _nearest(path: Path) -> Path:
    """Returns the path, or the nearest of its parents that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def _who() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"
