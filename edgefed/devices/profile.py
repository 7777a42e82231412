"""A device's birth certificate: what it is, as it said itself.

A figure that could not be read is null, never 0.
"""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import msgspec
import psutil

from edgefed import __version__

__all__ = ["DeviceProfile", "read_profile"]


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is.

    Attributes:
        edgefed_version: of the agent.
        host: its host name.
        model: the board, as its device tree or firmware names it; null where neither does.
        architecture: such as `aarch64`.
        system: operating system and release.
        python: version of the agent's Python.
        cpu_model: null where /proc does not say.
        cpu_count: logical processors this process may use.
        memory_total_bytes: of the host.
        memory_available_bytes: without swapping, when this was read.
        disk_free_bytes: where the agent keeps its state.
        quantization: precision of the base weights that the owner configured.
        max_rank: largest LoRA rank that the owner allows.
    """

    edgefed_version: str
    host: str
    model: str | None
    architecture: str
    system: str
    python: str
    cpu_model: str | None
    cpu_count: int
    memory_total_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    quantization: str
    max_rank: int


def read_profile(state_directory: Path, *, quantization: str, max_rank: int, root: Path = Path("/")) -> DeviceProfile:
    """Returns this machine's profile.

    Args:
        state_directory: where the agent keeps its state; it exists.
        quantization: as configured.
        max_rank: as configured.
        root: of the file system that `proc` and `sys` are read from.
    """
    memory = psutil.virtual_memory()
    return DeviceProfile(
        edgefed_version=__version__,
        host=socket.gethostname(),
        model=_board_model(root),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cpu_model=_cpu_model(root),
        cpu_count=len(os.sched_getaffinity(0)),
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        disk_free_bytes=psutil.disk_usage(str(state_directory)).free,
        quantization=quantization,
        max_rank=max_rank,
    )


def _board_model(root: Path) -> str | None:
    for name in ("sys/firmware/devicetree/base/model", "sys/devices/virtual/dmi/id/product_name"):
        try:
            text = (root / name).read_text(errors="replace").strip("\0 \n")
        except OSError:
            continue
        if text:
            return text
    return None


def _cpu_model(root: Path) -> str | None:
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip() or None
    return None
