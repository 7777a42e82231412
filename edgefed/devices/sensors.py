"""What a device can tell of its power and its heat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgefed.devices.sysfs import read_integer, read_text

__all__ = ["AbsentSensor", "PowerProfile", "PowerSensor", "ThermalProfile", "read_thermal"]


class PowerSensor(msgspec.Struct, frozen=True, kw_only=True):
    """A sensor that answered when it was asked.

    Attributes:
        name: of the reader.
        method: how joules come out of it; see `edgefed.devices.usage.EnergyMethod`.
        scope: what it sees.
        coverage: what it does and does not see, in words.
        used: it is the one that energy is told by; scopes that nest are never added.
    """

    name: str
    method: str
    scope: str
    coverage: str
    used: bool = False


class AbsentSensor(msgspec.Struct, frozen=True, kw_only=True):
    """A sensor that is not there or does not answer, why, and what would help."""

    name: str
    reason: str
    remedy: str = ""


class PowerProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Power mode and sensors.

    Attributes:
        mode: name of the power mode; null where the machine has none or does not tell, and `mode_reason` says which.
        mode_reason: why there is no mode.
        sensors: those that answered.
        absent: those that did not.
    """

    mode: str | None = None
    mode_reason: str = ""
    sensors: tuple[PowerSensor, ...] = ()
    absent: tuple[AbsentSensor, ...] = ()


class ThermalProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Heat, when the profile was read.

    Attributes:
        temperature_c: by sensor.
        throttled: whether the hardware runs below its clock for heat or power; null where it does not tell.
        reason: why something is null.
    """

    temperature_c: Mapping[str, float] = {}
    throttled: bool | None = None
    reason: str = ""


def read_thermal(root: Path = Path("/")) -> ThermalProfile:
    """Returns the temperatures of the kernel's thermal zones; zones that do not answer are left out.

    Whether the hardware is throttled is told by its cooling devices: one of the processor or the GPU that is in force.

    Args:
        root: of the file system that `sys` is read from.
    """
    thermal = root / "sys/class/thermal"
    temperature_c: dict[str, float] = {}
    for zone in sorted(thermal.glob("thermal_zone*")):
        reading = read_integer(zone / "temp")
        if reading is not None:
            name = read_text(zone / "type") or zone.name
            temperature_c[name if name not in temperature_c else f"{name} ({zone.name})"] = reading / 1000
    coolers = [read_integer(path / "cur_state") for path in thermal.glob("cooling_device*") if _throttles(path)]
    states = [state for state in coolers if state is not None]
    reasons = []
    if not temperature_c:
        reasons.append("the kernel exposes no thermal zone that answers (so it is in most virtual machines)")
    if not states:
        reasons.append("no cooling device tells whether the processor or the GPU is throttled")
    throttled = any(state > 0 for state in states) if states else None
    return ThermalProfile(temperature_c=temperature_c, throttled=throttled, reason="; ".join(reasons))


def _throttles(cooler: Path) -> bool:
    """Whether a cooling device slows down the processor or the GPU; fans do not."""
    kind = (read_text(cooler / "type") or "").lower()
    return "fan" not in kind and any(word in kind for word in ("processor", "cpu", "gpu", "devfreq"))
