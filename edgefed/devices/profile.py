"""A device's birth certificate: what it is, as it measured itself.

A figure that could not be measured is null, never 0, and says why.
"""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from edgefed import __version__
from edgefed.devices.compute import ComputeProfile
from edgefed.devices.cpu import CpuProfile, read_cpu
from edgefed.devices.flashed import Flashed, read_flashed
from edgefed.devices.gpu import GpuProfile
from edgefed.devices.memory import MemoryProfile
from edgefed.devices.network import NetworkProfile
from edgefed.devices.release_state import ReleaseState
from edgefed.devices.sensors import PowerProfile, ThermalProfile
from edgefed.devices.storage import StorageProfile

__all__ = ["DeviceProfile", "RealParts", "read_profile"]


class RealParts(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on a machine that emulates another one."""

    board: str | None = None
    memory: MemoryProfile | None = None
    gpu: GpuProfile | None = None
    compute: ComputeProfile | None = None
    network: NetworkProfile | None = None
    power_mode: str | None = None


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
        board: id of the board in `device_profiles` that this machine is.
        memory: that training uses, counted once.
        cpu: the processor.
        gpu: that training uses.
        compute: rates that were reached.
        storage: where the agent keeps its state.
        power: power mode and sensors.
        thermal: heat, when this was read.
        network: the way through the broker to the aggregator.
        why_null: why a part is null, by its name.
        warnings: what looks wrong, such as a rate above what the board's sheet allows.
        measured_unix_s: when the rates were measured; null where they were not.
        quick: some rates were left out to be done in seconds.
        emulated: id of the board that this machine plays; `board`, `memory`, `gpu`, `compute`, `network` and
            `power.mode` are then that board's, from its sheet, and what was measured stands under `real`.
        real: what was measured where a board is emulated.
        flashed: what put edgefed on this board; null where it was installed in another way.
        release: what has become of the latest release that this device was offered.
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
    board: str | None = None
    memory: MemoryProfile | None = None
    cpu: CpuProfile | None = None
    gpu: GpuProfile | None = None
    compute: ComputeProfile | None = None
    storage: StorageProfile | None = None
    power: PowerProfile | None = None
    thermal: ThermalProfile | None = None
    network: NetworkProfile | None = None
    why_null: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()
    measured_unix_s: float | None = None
    quick: bool = False
    emulated: str | None = None
    real: RealParts | None = None
    flashed: Flashed | None = None
    release: ReleaseState | None = None


def read_profile(state_directory: Path, *, quantization: str, max_rank: int, root: Path = Path("/")) -> DeviceProfile:
    """Returns what this machine tells at once, without measuring anything.

    Args:
        state_directory: where the agent keeps its state; it exists.
        quantization: as configured.
        max_rank: as configured.
        root: of the file system that `proc`, `sys` and the record of flashing are read from.
    """
    memory = psutil.virtual_memory()
    flashed, unknown = read_flashed(root)
    cpu = read_cpu(root)
    return DeviceProfile(
        edgefed_version=__version__,
        host=socket.gethostname(),
        model=_board_model(root),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cpu_model=cpu.model,
        cpu_count=cpu.usable,
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        disk_free_bytes=psutil.disk_usage(str(state_directory)).free,
        quantization=quantization,
        max_rank=max_rank,
        cpu=cpu,
        flashed=flashed,
        why_null={"flashed": unknown} if unknown else {},
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
