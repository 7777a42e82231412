"""The memory that training may use, counted once: host, GPU, or one that both share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from edgefed.devices.gpu import GpuProfile
from edgefed.devices.sysfs import read_integer

__all__ = ["HostMemory", "MemoryProfile", "count_oom_kills", "read_host_memory", "training_memory"]


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The host's memory, within the limit that this process is under.

    Attributes:
        total_bytes: of the machine, or of the control group where that is less.
        available_bytes: without swapping; in a control group at most what its limit leaves.
        limited_by: "cgroup" where a control group sets the limit, else "".
    """

    total_bytes: int
    available_bytes: int
    limited_by: Literal["", "cgroup"] = ""


class MemoryProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The memory that training uses.

    Attributes:
        kind: `unified` where CPU and GPU share one memory, `discrete` where the GPU has its own, `host` where the
            worker computes on the CPU.
        total_bytes: of that memory.
        available_bytes: of that memory, before any reserve.
        host: the host's memory; the same bytes again where the kind is `unified` or `host`.
        method: how `available_bytes` came about.
    """

    kind: Literal["unified", "discrete", "host"]
    total_bytes: int
    available_bytes: int
    host: HostMemory
    method: str


def read_host_memory(root: Path = Path("/")) -> HostMemory:
    """Returns this machine's memory, within the control group of this process.

    Args:
        root: of the file system that the control group's files are read from.
    """
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limited_by: Literal["", "cgroup"] = ""
    for group, files in _control_groups(root):
        limit, used = read_integer(group / files.limit), read_integer(group / files.used)
        if limit is not None and used is not None:
            left = max(0, limit - used + _reclaimable(group / "memory.stat", files.reclaimable))
            if limit < total or left < available:
                total, available, limited_by = min(total, limit), min(available, left), "cgroup"
    return HostMemory(total_bytes=total, available_bytes=available, limited_by=limited_by)


def count_oom_kills(root: Path = Path("/")) -> int | None:
    """Returns how many processes the kernel has ended for want of memory since it started; None where it does not tell.

    Args:
        root: of the file system that `proc` is read from.
    """
    try:
        lines = (root / "proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def training_memory(host: HostMemory, gpu: GpuProfile | None) -> MemoryProfile:
    """Returns the memory that training uses; shared memory is counted once.

    On an integrated GPU the runtime's free memory leaves out what the host could reclaim (it follows MemFree, not
    MemAvailable), so what is available is the host's figure, up to what the runtime can address.
    """
    within = " within the control group" if host.limited_by else ""
    if gpu is None:
        return MemoryProfile(
            kind="host",
            total_bytes=host.total_bytes,
            available_bytes=host.available_bytes,
            host=host,
            method=f"MemAvailable of the host{within}",
        )
    if gpu.integrated:
        return MemoryProfile(
            kind="unified",
            total_bytes=min(gpu.memory_total_bytes, host.total_bytes),
            available_bytes=min(gpu.memory_total_bytes, host.available_bytes),
            host=host,
            method=f"least of the GPU's total and MemAvailable of the host{within}: it is one memory",
        )
    return MemoryProfile(
        kind="discrete",
        total_bytes=gpu.memory_total_bytes,
        available_bytes=gpu.memory_free_bytes,
        host=host,
        method="free memory of the GPU, as the CUDA runtime says",
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """Names of a control group's files.

    Attributes:
        limit: bytes it may have.
        used: bytes it has.
        reclaimable: entries of memory.stat that the kernel gives up before it ends anybody.
    """

    limit: str
    used: str
    reclaimable: tuple[str, ...]


_VERSION_2 = _Files("memory.max", "memory.current", ("inactive_file", "slab_reclaimable"))
_VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file",))


def _control_groups(root: Path) -> list[tuple[Path, _Files]]:
    """Returns the directories of this process's memory control group and of those around it, in either version."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups: list[tuple[Path, _Files]] = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            groups += [(group, _VERSION_2) for group in _around(root / "sys/fs/cgroup", path)]
        elif "memory" in controllers.split(","):
            groups += [(group, _VERSION_1) for group in _around(root / "sys/fs/cgroup/memory", path)]
    return groups


def _around(mount: Path, path: str) -> list[Path]:
    if ".." in path:  # it leads out of a container's own view
        return [mount]
    own = mount / path.lstrip("/")
    return [group for group in (own, *own.parents) if group == mount or mount in group.parents]


def _reclaimable(path: Path, names: tuple[str, ...]) -> int:
    """Returns the bytes of file cache in a group, which the kernel gives up before it ends anybody."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return sum(int(values.get(name, "0")) for name in names)
