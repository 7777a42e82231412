"""What a device's owner may make training depend on: the hour, heat, mains, the network it is on, memory and load."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from edgefed.devices.sysfs import read_text

__all__ = ["Conditions", "read_conditions"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """A device at one moment. What cannot be read is None.

    Attributes:
        local_time: the owner's clock.
        temperature_c: of the hottest thermal zone.
        on_mains: whether it is fed from outside; None where nothing says so, as on boards without a battery.
        battery_percent: charge of the emptiest battery.
        interface: network interface of the default route.
        memory_available_bytes: without swapping.
        load_per_core: runnable processes per processor, over one minute.
    """

    local_time: datetime
    temperature_c: float | None
    on_mains: bool | None
    battery_percent: float | None
    interface: str | None
    memory_available_bytes: int
    load_per_core: float


def read_conditions(root: Path = Path("/")) -> Conditions:
    """Returns the present conditions.

    Args:
        root: of the file system that `proc` and `sys` are read from.
    """
    supplies = list(_power_supplies(root))
    charges = [float(one["capacity"]) for one in supplies if one.get("type") == "Battery" and "capacity" in one]
    return Conditions(
        local_time=datetime.now().astimezone(),
        temperature_c=_hottest_c(root),
        on_mains=_on_mains(supplies),
        battery_percent=min(charges, default=None),
        interface=_default_interface(root),
        memory_available_bytes=psutil.virtual_memory().available,
        load_per_core=os.getloadavg()[0] / (os.cpu_count() or 1),
    )


def _hottest_c(root: Path) -> float | None:
    millidegrees = [read_text(path) for path in (root / "sys/class/thermal").glob("thermal_zone*/temp")]
    readings = [int(text) / 1000 for text in millidegrees if text and text.lstrip("-").isdecimal()]
    return max(readings, default=None)


def _power_supplies(root: Path) -> Iterator[dict[str, str]]:
    """Yields what each supply says (see the kernel's sysfs-class-power); batteries of peripherals are left out."""
    for directory in sorted((root / "sys/class/power_supply").glob("*")):
        names = ("type", "online", "status", "capacity", "scope")
        said = {name: text for name in names if (text := read_text(directory / name))}
        if said.get("scope") != "Device":
            yield said


def _on_mains(supplies: list[dict[str, str]]) -> bool | None:
    feeds = [one["online"] != "0" for one in supplies if one.get("type") != "Battery" and "online" in one]
    if feeds:
        return any(feeds)
    batteries = [one["status"] for one in supplies if one.get("type") == "Battery" and "status" in one]
    return all(status != "Discharging" for status in batteries) if batteries else None


def _default_interface(root: Path) -> str | None:
    """Returns the interface of the default route with the lowest metric."""
    routes: list[tuple[int, str]] = []
    for line in (read_text(root / "proc/net/route") or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000" and fields[6].isdecimal():
            routes.append((int(fields[6]), fields[0]))
    return min(routes)[1] if routes else None
