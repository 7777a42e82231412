"""NVIDIA's management library, NVML: power, energy, load, heat, memory and clocks of a GPU.

That the library starts proves nothing. On Jetson Orin it starts, lists one GPU, and answers almost no question; on Thor
it answers some. So each question is asked once, on its own, and what was answered or why not is kept; questions that
were not answered are not asked again. A figure of 0 where nothing can be 0 counts as no answer: integrated GPUs are
known to give it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgefed.devices.gpu import nvidia_driver_is_there
from edgefed.devices.power.base import Found
from edgefed.devices.sensors import AbsentSensor
from edgefed.devices.usage import EnergyMethod, EnergyScope

__all__ = ["Capability", "FoundNvml", "NvmlAnswer", "NvmlDevice", "NvmlReader", "find_nvml"]

Capability = Literal["power", "energy", "temperature", "utilization", "memory", "clocks", "throttle"]

_NAME = "NVML"
# Bits of nvmlClocksEventReasons in nvml.h: power cap, slowdown, thermal slowdown by software and hardware, power brake.
_SLOWED = 0x04 | 0x08 | 0x20 | 0x40 | 0x80
_TEMPERATURE_GPU, _CLOCK_SM = 0, 1  # NVML_TEMPERATURE_GPU, NVML_CLOCK_SM of nvml.h
# Of what cannot be 0. An energy counter can, of a driver that was just loaded.
_NEVER_0: Mapping[Capability, str] = {"power": "W", "temperature": "°C", "memory": "bytes of memory", "clocks": "Hz"}


@dataclass(frozen=True, slots=True)
class NvmlAnswer:
    """What a question gave when it was first asked: a value, or why there is none."""

    value: float | None
    reason: str = ""


class NvmlDevice:
    """One GPU, asked everything once when this is made.

    Args:
        library: the module `pynvml` of nvidia-ml-py, started.
        handle: of the GPU.
        name: as the driver names it.

    Attributes:
        name: likewise.
        capabilities: what each question gave then: watts, joules of the counter since the driver was loaded, °C,
            percent of the time a kernel ran, bytes of memory, Hz of the streaming multiprocessors, and 1 or 0 for
            whether the clock is held down for heat or power.
    """

    def __init__(self, library: Any, handle: Any, *, name: str) -> None:
        self.name = name
        self._library = library
        self._handle = handle
        capabilities = {what: self._ask(what) for what in _QUESTIONS}
        if capabilities["energy"].value == 0 and capabilities["power"].value is None:
            capabilities["energy"] = NvmlAnswer(None, "NVML says 0 J, and no power either")
        self.capabilities: Mapping[Capability, NvmlAnswer] = capabilities

    def read(self, what: Capability) -> float | None:
        """Returns an answer of now, in the units of `capabilities`; None where there is none."""
        return None if self.capabilities[what].value is None else self._ask(what).value

    def throttled(self) -> bool | None:
        """Returns whether the clock is held down for heat or power now; None where the driver does not tell."""
        answer = self.read("throttle")
        return None if answer is None else answer > 0

    def _ask(self, what: Capability) -> NvmlAnswer:
        try:
            value = _QUESTIONS[what](self._library, self._handle)
        except self._library.NVMLError as error:
            return NvmlAnswer(None, f"NVML says: {error}")
        except AttributeError as error:  # a question that this release of the library does not know
            return NvmlAnswer(None, str(error))
        if value == 0 and what in _NEVER_0:
            return NvmlAnswer(None, f"NVML says {value:g} {_NEVER_0[what]}, which means nothing")
        return NvmlAnswer(value)


class NvmlReader:
    """The power sensor of a GPU that answers for its energy or its power.

    Args:
        device: the GPU.
        others: how many other GPUs this machine has, which the sensor does not see.
    """

    scope: EnergyScope = "gpu"

    def __init__(self, device: NvmlDevice, *, others: int = 0) -> None:
        self.name = f"NVML of {device.name}"
        self._device = device
        has = device.capabilities
        self.method_integrated: EnergyMethod | None = None if has["power"].value is None else "nvml-integrated"
        self.method_counted: EnergyMethod | None = None if has["energy"].value is None else "nvml-counter"
        unseen = "the processor and the rest of the machine" + (
            f", nor {others} other GPU{'s' * (others > 1)}" if others else ""
        )
        self.coverage = f"the GPU with its memory, not {unseen}"

    def watts(self) -> float | None:
        """Returns the GPU's power, which the driver averages over up to a second."""
        return self._device.read("power")

    def joules(self) -> float | None:
        """Returns the energy since the driver was loaded."""
        return self._device.read("energy")

    def rails_w(self) -> dict[str, float]:
        """Returns nothing: NVML tells the GPU as a whole."""
        return {}


@dataclass(frozen=True, slots=True)
class FoundNvml:
    """What NVML has for this process.

    Attributes:
        device: the GPU that CUDA takes first; None where NVML names none.
        power: its power sensor, or why there is none.
    """

    device: NvmlDevice | None = None
    power: Found = field(default_factory=Found)


def find_nvml(
    root: Path = Path("/"),
    *,
    library: Any = None,
    visible: str | None = None,
    which: Callable[[str], str | None] = shutil.which,
) -> FoundNvml:
    """Returns what NVML tells of the GPU that training uses; without a driver, the library is not even loaded.

    Args:
        root: of the file system in which the driver's files are looked for.
        library: stands in for `pynvml`.
        visible: CUDA_VISIBLE_DEVICES; by default this process's.
        which: finds programs.
    """
    if not nvidia_driver_is_there(root):
        if which("nvidia-smi") is None:
            return FoundNvml()
        return _nothing(
            "nvidia-smi is installed, but no NVIDIA driver is loaded",
            "load it (modprobe nvidia), or install the driver that belongs to it",
        )
    if library is None:
        try:
            import pynvml
        except ImportError:
            return _nothing("the Python package nvidia-ml-py is not installed", "pip install 'edgefed[gpu]'")
        library = pynvml
    try:
        library.nvmlInit()
        count = library.nvmlDeviceGetCount()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
        handle = _chosen(library, count, visible)
        if handle is None:
            return _nothing(f"none of its {count} GPUs is the one that CUDA_VISIBLE_DEVICES={visible!r} names")
        device = NvmlDevice(library, handle, name=_name(library, handle))
    except library.NVMLError as error:
        return _nothing(f"NVML says: {error}", "Jetson has NVML from JetPack 6 on; else see nvidia-smi")
    reader = NvmlReader(device, others=count - 1)
    if reader.method_integrated is None and reader.method_counted is None:
        power, energy = device.capabilities["power"].reason, device.capabilities["energy"].reason
        reasons = power if power == energy else f"power: {power}; energy: {energy}"
        return FoundNvml(device, Found(absent=(AbsentSensor(name=reader.name, reason=reasons),)))
    return FoundNvml(device, Found(readers=(reader,)))


def _nothing(reason: str, remedy: str = "") -> FoundNvml:
    return FoundNvml(power=Found(absent=(AbsentSensor(name=_NAME, reason=reason, remedy=remedy),)))


def _chosen(library: Any, count: int, visible: str | None) -> Any:
    """Returns the handle of the GPU that CUDA takes first; None where there is none.

    CUDA_VISIBLE_DEVICES lists numbers or beginnings of UUIDs; unset, the first of all. A number is CUDA's, which is
    NVML's where CUDA_DEVICE_ORDER=PCI_BUS_ID or the GPUs are of one kind.
    """
    first = "0" if visible is None else visible.split(",")[0].strip()
    if first.isdecimal():
        return library.nvmlDeviceGetHandleByIndex(int(first)) if int(first) < count else None
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    return next((one for one in handles if first and _text(library.nvmlDeviceGetUUID(one)).startswith(first)), None)


def _name(library: Any, handle: Any) -> str:
    try:
        return _text(library.nvmlDeviceGetName(handle))
    except library.NVMLError:
        return "an NVIDIA GPU"


def _text(value: str | bytes) -> str:
    """Returns text; older releases of the library give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _throttle(library: Any, handle: Any) -> float:
    """Returns 1 while the clock is held down; drivers up to 525 know the question by its older name."""
    try:
        reasons = library.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except (AttributeError, library.NVMLError):
        reasons = library.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return float(bool(reasons & _SLOWED))


_QUESTIONS: Mapping[Capability, Callable[[Any, Any], float]] = {
    "power": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
    "energy": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3,
    "temperature": lambda nvml, gpu: float(nvml.nvmlDeviceGetTemperature(gpu, _TEMPERATURE_GPU)),
    "utilization": lambda nvml, gpu: float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
    "memory": lambda nvml, gpu: float(nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    "clocks": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, _CLOCK_SM) * 1e6,
    "throttle": _throttle,
}
