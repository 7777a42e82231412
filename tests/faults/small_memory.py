"""Real limits of memory for a worker: one that the kernel kills for, and one that makes an allocation fail."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["EXAMPLE_BYTES", "almost_twice", "enter_limit", "memory_group"]

EXAMPLE_BYTES = 32 << 20
"""What an example of a micro-batch takes in a worker that eats memory."""


def almost_twice(examples: int) -> float:
    """Returns how many examples a limit shall hold, so that these fit beside all else and twice as many do not."""
    return 2 * examples - 0.25


@contextlib.contextmanager
def memory_group(examples: float) -> Iterator[Path | None]:
    """Makes a control group in which so many examples fit and gives its directory; None where nobody may make one."""
    size_bytes = int(examples * EXAMPLE_BYTES)
    version_1, version_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    first = (version_1 / "memory.limit_in_bytes").exists()
    group = (version_1 if first else version_2) / f"edgefed-test-{secrets.token_hex(4)}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(size_bytes))
    except OSError:  # there is no memory controller below this group
        group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def enter_limit(examples: float, group: str = "") -> None:
    """Puts this process into a control group, or, where none is given, under a limit on its data."""
    if group:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
        return
    status = Path("/proc/self/status").read_text()
    used_bytes = int(status.partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used_bytes + int(examples * EXAMPLE_BYTES),) * 2)
