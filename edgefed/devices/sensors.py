"""What a device can tell of its power and its heat."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = ["AbsentSensor", "PowerProfile", "PowerSensor", "ThermalProfile"]


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
