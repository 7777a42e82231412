"""What a Jetson tells of its release and of its GPU's clock, for which NVML has no answer on these boards."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from edgefed.devices.sysfs import read_integer, read_text

__all__ = ["JetsonGpuClock", "read_gpu_clock", "read_l4t"]

_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)")
_GPU_NODE = re.compile(r"\d+\.(gpu|gp10b|gv11b|ga10b)|gpu-gpc-0")
"""Names of the GPU's devfreq node: by address, with the chip's name up to JetPack 5; `gpu-gpc-0` on Thor."""


class JetsonGpuClock(msgspec.Struct, frozen=True, kw_only=True):
    """The clock of a Jetson's GPU.

    Attributes:
        current_hz: now; it falls when there is nothing to do.
        min_hz: lowest that the power mode allows.
        max_hz: highest that the power mode allows.
    """

    current_hz: int
    min_hz: int
    max_hz: int


def read_l4t(root: Path = Path("/")) -> str | None:
    """Returns the release of Jetson Linux, such as "36.4.3"; None on other machines.

    Args:
        root: of the file system that `etc` is read from.
    """
    found = _RELEASE.search(read_text(root / "etc/nv_tegra_release") or "")
    return f"{found[1]}.{found[2]}" if found else None


def read_gpu_clock(root: Path = Path("/")) -> JetsonGpuClock | None:
    """Returns the GPU's clock and what the power mode allows; None where there is no such node, or no answer.

    Args:
        root: of the file system that `sys` is read from.
    """
    nodes = sorted((root / "sys/class/devfreq").glob("*"))
    node = next((node for node in nodes if _GPU_NODE.fullmatch(node.name)), None)
    if node is None:
        return None
    current, lowest, highest = (read_integer(node / f"{name}_freq") for name in ("cur", "min", "max"))
    if current is None or lowest is None or highest is None:
        return None
    return JetsonGpuClock(current_hz=current, min_hz=lowest, max_hz=highest)
