"""Laptops' batteries: while nothing else feeds the machine, what they give is what it takes (sysfs-class-power)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgefed.devices.power.base import Found
from edgefed.devices.sensors import AbsentSensor
from edgefed.devices.sysfs import read_integer, read_text
from edgefed.devices.usage import EnergyMethod, EnergyScope

__all__ = ["BatteryReader", "find_battery"]


class BatteryReader:
    """The machine's batteries, added up. On mains they tell how fast they charge, so there is no answer.

    Args:
        batteries: their directories.
    """

    name = "battery"
    method_integrated: EnergyMethod | None = "hwmon-integrated"
    method_counted: EnergyMethod | None = None
    scope: EnergyScope = "board"
    coverage = "the whole machine, its display included, while it runs on battery; on mains there is no answer"

    def __init__(self, batteries: Sequence[Path]) -> None:
        self._batteries = batteries

    def watts(self) -> float | None:
        """Returns the power that flows out of the batteries; None on mains, or unless all in use tell it."""
        in_use = [battery for battery in self._batteries if read_text(battery / "status") == "Discharging"]
        parts = [part for battery in in_use if (part := _power_w(battery)) is not None]
        return sum(parts) if parts and len(parts) == len(in_use) else None

    def joules(self) -> float | None:
        """Returns None: what a battery tells of its charge is an estimate, in steps too large to measure with."""
        return None

    def rails_w(self) -> dict[str, float]:
        """Returns {}: there are no rails."""
        return {}


def find_battery(root: Path = Path("/")) -> Found:
    """Returns the reader of the machine's batteries, also on mains, or why there is none; neither without a battery.

    Args:
        root: of the file system that `sys` is read from.
    """
    batteries = [
        supply
        for supply in sorted((root / "sys/class/power_supply").glob("*"))
        if read_text(supply / "type") == "Battery" and read_text(supply / "scope") != "Device"  # a mouse's is its own
    ]
    if not batteries:
        return Found()
    if any(_power_w(battery) is None for battery in batteries):
        return Found(absent=(AbsentSensor(name="battery", reason="its driver tells no power"),))
    return Found(readers=(BatteryReader(batteries),))


def _power_w(battery: Path) -> float | None:
    """Returns what flows; some drivers give current a sign."""
    microwatts = read_integer(battery / "power_now")
    if microwatts is not None:
        return abs(microwatts) / 1e6
    microvolts, microamperes = read_integer(battery / "voltage_now"), read_integer(battery / "current_now")
    if microvolts is None or microamperes is None:
        return None
    return abs(microvolts * microamperes) / 1e12
