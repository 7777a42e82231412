"""Looking at the hardware twice a second while it works: load, heat, memory, summed up over a window.

Light: a few files of /proc and /sys per look, no process started, nothing that waits. What it costs is part of the
result. Power sensors are not read yet, and the energy of a window says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from edgefed.devices.sensors import read_thermal
from edgefed.devices.usage import Energy, HardwareUse

__all__ = ["NO_POWER_SENSOR", "Sampler"]

NO_POWER_SENSOR = "this version reads no power sensor"


class Sampler:
    """One window, from its creation on.

    Args:
        worker: returns the process id of the worker while there is one.
        root: of the file system that `sys` is read from.
        clock: returns seconds.
    """

    def __init__(
        self,
        worker: Callable[[], int | None],
        *,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._root = root
        self._clock = clock
        self._began_s = self._looked_s = clock()
        self._cpu = psutil.cpu_times()
        self._busy_s, self._all_s = 0.0, 0.0
        self._samples = 0
        self._temperature_c: float | None = None
        self._throttled_s: float | None = None
        self._available_bytes: int | None = None
        self._resident_bytes: int | None = None
        self._cost_s = 0.0

    def look(self) -> None:
        """Reads everything once."""
        started_s = time.thread_time()
        now_s = self._clock()
        self._look_at_cpu()
        self._look_at_heat(now_s - self._looked_s)
        available = psutil.virtual_memory().available
        self._available_bytes = min(available, self._available_bytes or available)
        resident = self._worker_resident_bytes()
        if resident is not None:
            self._resident_bytes = max(resident, self._resident_bytes or 0)
        self._looked_s = now_s
        self._samples += 1
        self._cost_s += time.thread_time() - started_s

    def use(self) -> HardwareUse:
        """Returns the window up to now."""
        return HardwareUse(
            window_s=self._clock() - self._began_s,
            samples=self._samples,
            energy=Energy(reason=NO_POWER_SENSOR),
            cpu_percent=100.0 * self._busy_s / self._all_s if self._all_s else None,
            temperature_max_c=self._temperature_c,
            throttled_s=self._throttled_s,
            memory_available_min_bytes=self._available_bytes,
            worker_peak_resident_bytes=self._resident_bytes,
            sampling_cpu_s=self._cost_s,
        )

    def _look_at_cpu(self) -> None:
        """Adds what all processors did since the last look; a virtual machine's stolen time is nobody's work."""
        now, before = psutil.cpu_times(), self._cpu
        self._cpu = now
        spent = {name: max(0.0, getattr(now, name) - getattr(before, name)) for name in now._fields}
        whole_s = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)  # user has them already
        idle_s = spent["idle"] + spent.get("iowait", 0.0) + spent.get("steal", 0.0)
        self._all_s += whole_s
        self._busy_s += max(0.0, whole_s - idle_s)

    def _look_at_heat(self, since_s: float) -> None:
        thermal = read_thermal(self._root)
        if thermal.temperature_c:
            hottest = max(thermal.temperature_c.values())
            self._temperature_c = max(hottest, self._temperature_c if self._temperature_c is not None else hottest)
        if thermal.throttled is not None:
            self._throttled_s = (self._throttled_s or 0.0) + (since_s if thermal.throttled else 0.0)

    def _worker_resident_bytes(self) -> int | None:
        pid = self._worker()
        if pid is None:
            return None
        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:  # it has just ended
            return None
