"""What the measured rates of a machine depend on: when it changes, they are measured again."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from edgefed import __version__
from edgefed.agent.options import AgentOptions
from edgefed.devices.cpu import read_cpu
from edgefed.devices.gpu import gpu_names
from edgefed.devices.memory import read_host_memory
from edgefed.devices.power_mode import read_power_mode

__all__ = ["Identity", "identify"]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What the measured rates depend on; cheap to read."""

    edgefed: str
    torch: str
    bitsandbytes: str
    power_mode: str
    gpus: list[str]
    cpus: int
    memory_total_bytes: int
    hardware: str
    threads: int

    def changes_since(self, before: Identity) -> list[str]:
        """Returns in words what differs."""
        return [
            f"{name.replace('_', ' ')} was {getattr(before, name) or 'none'!r}, is {getattr(self, name) or 'none'!r}"
            for name in self.__struct_fields__
            if getattr(before, name) != getattr(self, name)
        ]


def identify(options: AgentOptions) -> Identity:
    """Returns what the measured rates depend on, as it is now."""
    root = Path(options.root)
    return Identity(
        edgefed=__version__,
        torch=_version("torch"),
        bitsandbytes=_version("bitsandbytes"),
        power_mode=read_power_mode(root)[0] or "",
        gpus=gpu_names(root),
        cpus=read_cpu(root).usable,
        memory_total_bytes=read_host_memory(root).total_bytes,
        hardware=options.worker.device,
        threads=options.limits.threads,
    )


def _version(package: str) -> str:
    """Returns the installed version; "" where there is none. `importlib.metadata` would stay in memory with 3 MB."""
    for place in sys.path:
        for found in Path(place or ".").glob(f"{package}-*.dist-info"):
            return found.name.removeprefix(f"{package}-").removesuffix(".dist-info")
    return ""
