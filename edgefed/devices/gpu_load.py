"""The load of a Jetson's integrated GPU: a file of its device node, which has moved with every kernel."""

from __future__ import annotations

from pathlib import Path

__all__ = ["find_gpu_load", "read_gpu_percent"]

# Nano and TX1, TX2, Xavier, Orin up to JetPack 5, Orin from JetPack 6 on; see jtop's gpu.py for the names.
_NODES = ("57000000.gpu", "17000000.gp10b", "17000000.gv11b", "17000000.ga10b", "17000000.gpu", "gpu.0")
_PARENTS = ("sys/devices/platform", "sys/devices/platform/bus@0", "sys/devices")


def find_gpu_load(root: Path = Path("/")) -> Path | None:
    """Returns the file that tells the GPU's load; None where there is none that answers.

    Args:
        root: of the file system that `sys` is read from.
    """
    nodes = [root / parent / node / "load" for parent in _PARENTS for node in _NODES]
    return next((path for path in nodes if read_gpu_percent(path) is not None), None)


def read_gpu_percent(path: Path) -> float | None:
    """Returns the load in percent, which the file has per mille; None where it does not answer."""
    try:
        per_mille = int(path.read_text())
    except (OSError, ValueError):
        return None
    return per_mille / 10 if 0 <= per_mille <= 1000 else None
