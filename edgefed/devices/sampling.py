"""Looking at the hardware twice a second while it works: power, load, heat, memory, summed up over a window.

Light: a few files of /proc and /sys and a few questions to the GPU's driver per look, nothing that waits for long. What
it costs is part of the result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from edgefed.devices.energy import EnergyMeter
from edgefed.devices.instruments import Hardware, Instruments
from edgefed.devices.power.base import PowerReader
from edgefed.devices.sensors import read_thermal
from edgefed.devices.usage import Energy, HardwareUse

__all__ = ["SAMPLE_S", "Sampler"]

SAMPLE_S = 0.5
"""How often the hardware is meant to be looked at."""


class Sampler:
    """One window, from its creation on. May be used from several threads.

    Args:
        worker: returns the process id of the worker while there is one.
        instruments: the machine's sensors.
        hardware: what the worker computes on, where that is known.
        root: of the file system that `sys` is read from.
        clock: returns seconds.
    """

    def __init__(
        self,
        worker: Callable[[], int | None],
        *,
        instruments: Instruments | None = None,
        hardware: Hardware | None = None,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._instruments = instruments or Instruments()
        self._root = root
        self._clock = clock
        self._lock = threading.Lock()
        self._began_s = self._looked_s = clock()
        self._cpu = psutil.cpu_times()
        self._busy_s, self._all_s = 0.0, 0.0
        self._gpu_percent_s, self._gpu_s = 0.0, 0.0
        self._samples = 0
        self._temperature_c: float | None = None
        self._throttled_s: float | None = None
        self._available_bytes: int | None = None
        self._resident_bytes: int | None = None
        self._cost_s = 0.0
        self._power = self._instruments.power_reader(hardware)
        self._meter = None if self._power is None else _meter_for(self._power, self._began_s)

    def look(self) -> None:
        """Reads everything once."""
        with self._lock:
            started_s = time.thread_time()
            now_s = self._clock()
            since_s = now_s - self._looked_s
            self._look_at_power(now_s)
            self._look_at_cpu()
            self._look_at_gpu(since_s)
            self._look_at_heat(since_s)
            self._look_at_memory()
            self._looked_s = now_s
            self._samples += 1
            self._cost_s += time.thread_time() - started_s

    def use(self) -> HardwareUse:
        """Returns the window up to now."""
        with self._lock:
            now_s = self._clock()
            return HardwareUse(
                window_s=now_s - self._began_s,
                samples=self._samples,
                energy=self._energy(now_s),
                cpu_percent=100.0 * self._busy_s / self._all_s if self._all_s else None,
                gpu_percent=self._gpu_percent_s / self._gpu_s if self._gpu_s else None,
                temperature_max_c=self._temperature_c,
                throttled_s=self._throttled_s,
                memory_available_min_bytes=self._available_bytes,
                worker_peak_resident_bytes=self._resident_bytes,
                sampling_cpu_s=self._cost_s,
            )

    def finish(self) -> HardwareUse:
        """Looks a last time and returns the window."""
        self.look()
        return self.use()

    def _energy(self, now_s: float) -> Energy:
        if self._meter is None:
            return Energy(reason=self._instruments.why_no_power())
        return self._meter.energy(now_s)

    def _look_at_power(self, now_s: float) -> None:
        if self._power is not None and self._meter is not None:
            self._meter.read(now_s, watts=self._power.watts(), joules=self._power.joules())

    def _look_at_cpu(self) -> None:
        """Adds what all processors did since the last look; a virtual machine's stolen time is nobody's work."""
        now, before = psutil.cpu_times(), self._cpu
        self._cpu = now
        spent = {name: max(0.0, getattr(now, name) - getattr(before, name)) for name in now._fields}
        whole_s = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)  # user has them already
        idle_s = spent["idle"] + spent.get("iowait", 0.0) + spent.get("steal", 0.0)
        self._all_s += whole_s
        self._busy_s += max(0.0, whole_s - idle_s)

    def _look_at_gpu(self, since_s: float) -> None:
        percent = self._instruments.gpu_percent()
        if percent is not None:
            self._gpu_percent_s += percent * since_s
            self._gpu_s += since_s

    def _look_at_heat(self, since_s: float) -> None:
        thermal = read_thermal(self._root)
        readings = [*thermal.temperature_c.values(), self._instruments.gpu_temperature_c(), self._temperature_c]
        self._temperature_c = max((one for one in readings if one is not None), default=None)
        told = [one for one in (thermal.throttled, self._instruments.gpu_throttled()) if one is not None]
        if told:
            self._throttled_s = (self._throttled_s or 0.0) + (since_s if any(told) else 0.0)

    def _look_at_memory(self) -> None:
        available = psutil.virtual_memory().available
        self._available_bytes = min(available, self._available_bytes or available)
        resident = self._worker_resident_bytes()
        if resident is not None:
            self._resident_bytes = max(resident, self._resident_bytes or 0)

    def _worker_resident_bytes(self) -> int | None:
        pid = self._worker()
        if pid is None:
            return None
        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:  # it has just ended
            return None


def _meter_for(reader: PowerReader, began_s: float) -> EnergyMeter:
    return EnergyMeter(
        began_s=began_s,
        period_s=SAMPLE_S,
        method_integrated=reader.method_integrated,
        method_counted=reader.method_counted,
        scope=reader.scope,
        coverage=reader.coverage,
    )
