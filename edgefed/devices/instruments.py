"""The sensors of a machine, found once per process and read again and again: power, GPU load, GPU heat.

Looking for sensors starts programs and loads a library; reading those that were found does neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgefed.devices.gpu_load import find_gpu_load, read_gpu_percent
from edgefed.devices.power.base import Found, PowerReader, choose_reader
from edgefed.devices.power.find import find_readers
from edgefed.devices.power.nvml import FoundNvml, NvmlDevice, find_nvml
from edgefed.devices.sensors import PowerProfile, PowerSensor

__all__ = ["NO_POWER_SENSOR", "Hardware", "Instruments", "find_instruments"]

Hardware = Literal["cpu", "cuda"]

NO_POWER_SENSOR = "no power sensor was looked for"
"""The reason of instruments that nobody found: `find_instruments` gives better ones."""

_ONLY_THE_GPU = "its power sensor sees the GPU only, and training runs on the processor"


@dataclass(frozen=True, slots=True)
class Instruments:
    """What can be read on this machine.

    Attributes:
        power: its power sensors, and those that do not answer.
        nvml: the GPU as NVML tells of it.
        gpu_load: the file in which a Jetson's kernel tells the GPU's load.
    """

    power: Found = field(default_factory=Found)
    nvml: NvmlDevice | None = None
    gpu_load: Path | None = None

    def power_reader(self, hardware: Hardware | None = None) -> PowerReader | None:
        """Returns the sensor to tell energy by; None where there is none.

        Args:
            hardware: what training runs on, where that is known: a sensor of the GPU tells nothing of the processor.
        """
        return choose_reader(one for one in self.power.readers if hardware != "cpu" or one.scope != "gpu")

    def why_no_power(self) -> str:
        """Returns in words why there is no sensor to tell energy by."""
        if self.power.readers:
            return _ONLY_THE_GPU
        return "; ".join(f"{one.name}: {one.reason}" for one in self.power.absent) or NO_POWER_SENSOR

    def power_profile(self, mode: str | None, mode_reason: str, hardware: Hardware | None = None) -> PowerProfile:
        """Returns the sensors as the device's profile tells them.

        Args:
            mode: the board's power mode.
            mode_reason: why there is none.
            hardware: what training runs on, where that is known.
        """
        used = self.power_reader(hardware)
        sensors = tuple(
            PowerSensor(
                name=one.name,
                method=one.method_counted or one.method_integrated or "none",
                scope=one.scope,
                coverage=one.coverage,
                used=one is used,
            )
            for one in self.power.readers
        )
        return PowerProfile(mode=mode, mode_reason=mode_reason, sensors=sensors, absent=self.power.absent)

    def gpu_percent(self) -> float | None:
        """Returns the GPU's load now. A Jetson's kernel comes first: NVML may say 0 of an integrated GPU that works."""
        if self.gpu_load is not None:
            return read_gpu_percent(self.gpu_load)
        return self.nvml.read("utilization") if self.nvml is not None else None

    def gpu_temperature_c(self) -> float | None:
        """Returns the temperature of a GPU that tells it through NVML."""
        return self.nvml.read("temperature") if self.nvml is not None else None

    def gpu_throttled(self) -> bool | None:
        """Returns whether NVML says that the GPU's clock is held down for heat or power."""
        return self.nvml.throttled() if self.nvml is not None else None


def find_instruments(root: Path = Path("/"), *, gpu: bool = True) -> Instruments:
    """Returns the sensors that answer on this machine. Takes up to a second where a GPU must be woken.

    Args:
        root: of the file system that `sys`, `proc` and `dev` are read from.
        gpu: False leaves a GPU asleep that training never uses.
    """
    nvml = find_nvml(root) if gpu else FoundNvml()
    return Instruments(power=find_readers(root, extra=nvml.power), nvml=nvml.device, gpu_load=find_gpu_load(root))
