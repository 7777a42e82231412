"""The power mode that a Jetson board runs in: it decides how much of the GPU is powered, and how fast it may be."""

from __future__ import annotations

import re
from pathlib import Path

from edgefed.devices.sysfs import read_text

__all__ = ["read_power_mode"]

_STATUS = re.compile(r"pmode:(\d+)")
_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID\s*=\s*(\d+)\s+NAME\s*=\s*(\S+)\s*>")


def read_power_mode(root: Path = Path("/")) -> tuple[str | None, str]:
    """Returns the name of the mode and "", or None and why there is none.

    nvpmodel keeps the number of the mode in its status file and the names in its configuration; a mode whose name is
    not there is told by its number.

    Args:
        root: of the file system that both are read from.
    """
    status = read_text(root / "var/lib/nvpmodel/status")
    if status is None:
        return None, "this machine has no nvpmodel, which only Jetson boards have"
    found = _STATUS.search(status)
    if found is None:
        return None, f"nvpmodel's status file says {status.strip()[:40]!r}, which names no mode"
    number = int(found[1])
    names = dict(_MODEL.findall(read_text(root / "etc/nvpmodel.conf") or ""))
    return {int(key): name for key, name in names.items()}.get(number, f"mode {number}"), ""
