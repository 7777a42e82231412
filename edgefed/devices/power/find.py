"""Looking for every power sensor of a machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edgefed.devices.power.base import Found
from edgefed.devices.power.battery import find_battery
from edgefed.devices.power.hwmon import find_hwmon
from edgefed.devices.power.jetson_ina238 import find_ina238
from edgefed.devices.power.jetson_ina3221 import find_ina3221
from edgefed.devices.power.rapl import find_rapl
from edgefed.devices.power.raspberry_pi import find_pmic
from edgefed.devices.programs import Run, run_program
from edgefed.devices.sensors import AbsentSensor

__all__ = ["find_readers"]

_NOTHING = Found()
_NONE_AT_ALL = AbsentSensor(
    name="any power sensor",
    reason="this machine exposes none to Linux (so it is in most virtual machines and containers)",
    remedy="measure at its supply",
)


def find_readers(
    root: Path = Path("/"),
    *,
    run: Run = run_program,
    which: Callable[[str], str | None] = shutil.which,
    extra: Found = _NOTHING,
) -> Found:
    """Returns a reader for each sensor that answers, and those that one would expect here and that do not.

    What is found stays valid until drivers are loaded or unloaded: numbers of devices change only then. Who measures
    takes one of the readers (`edgefed.devices.power.base.choose_reader`), since what they see overlaps.

    Args:
        root: of the file system that `sys` and `proc` are read from.
        run: runs a program.
        which: finds a program.
        extra: found by other means than files, such as NVML's; told first.
    """
    found = extra
    for find in (find_ina238, find_ina3221, find_battery, find_hwmon, find_rapl):
        found += find(root)
    found += find_pmic(root, run=run, which=which)
    if not found.readers and not found.absent:
        return Found(absent=(_NONE_AT_ALL,))
    return found
