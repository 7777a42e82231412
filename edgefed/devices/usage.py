"""How hardware was used over a window of time: energy, load, heat. What was not measured is null, never 0."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["Energy", "EnergyMethod", "EnergyScope", "HardwareUse"]

EnergyMethod = Literal[
    "nvml-counter",
    "nvml-integrated",
    "ina3221",
    "ina238",
    "rapl",
    "pmic-fit",
    "hwmon-counter",
    "hwmon-integrated",
    "none",
]
EnergyScope = Literal["gpu", "module", "board", "package", "unknown"]
NonNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Bytes = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Joules over a window, and how they are known.

    Attributes:
        joules: null where nothing measured them; `reason` then says why.
        mean_w: joules over the measured part of the window, per second of it.
        method: how the figure came about.
        scope: what the sensor sees; scopes that nest are never added.
        coverage: what the sensor does and does not see, in words.
        measured_share: share of the window in which there were readings.
        reason: why joules are null, or what is wrong with them; "" when nothing is.
        agents: that run on the machine whose energy this is; what several of them tell must not be added.
    """

    joules: NonNegative | None = None
    mean_w: NonNegative | None = None
    method: EnergyMethod = "none"
    scope: EnergyScope = "unknown"
    coverage: str = ""
    measured_share: Share = 0.0
    reason: str = ""
    agents: Annotated[int, Meta(ge=1)] = 1


class HardwareUse(msgspec.Struct, frozen=True, kw_only=True):
    """A device over a window, such as one round's training.

    Attributes:
        window_s: its length.
        samples: how many times the sensors were read in it.
        energy: of the window.
        cpu_percent: mean load of all the machine's cores, 100 being all of them busy.
        gpu_percent: mean load of the GPU.
        temperature_max_c: hottest sensor's highest reading.
        throttled_s: seconds in which the hardware ran below its clock for heat or power.
        memory_available_min_bytes: least that was available on the host.
        worker_peak_resident_bytes: largest resident set of the worker.
        sampling_cpu_s: processor seconds that the sampling itself took.
    """

    window_s: NonNegative
    samples: Annotated[int, Meta(ge=0)]
    energy: Energy = Energy()
    cpu_percent: NonNegative | None = None
    gpu_percent: NonNegative | None = None
    temperature_max_c: float | None = None
    throttled_s: NonNegative | None = None
    memory_available_min_bytes: Bytes | None = None
    worker_peak_resident_bytes: Bytes | None = None
    sampling_cpu_s: NonNegative = 0.0
