"""Several windows of the same machine as one, such as the pieces of work that the owner's rules interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from edgefed.devices.usage import Energy, HardwareUse

__all__ = ["joined"]


def joined(windows: Sequence[HardwareUse]) -> HardwareUse:
    """Returns one window for several, of which there is at least one; the time between them belongs to none.

    Sums of what adds up, means weighted by seconds, and extremes; a window that does not know a figure leaves it to the
    others, and energy says so by `measured_share`.
    """
    if len(windows) == 1:
        return windows[0]
    throttled_s = _known(windows, lambda one: one.throttled_s)
    return HardwareUse(
        window_s=sum(one.window_s for one in windows),
        samples=sum(one.samples for one in windows),
        energy=_energy(windows),
        cpu_percent=_mean(windows, lambda one: one.cpu_percent),
        gpu_percent=_mean(windows, lambda one: one.gpu_percent),
        temperature_max_c=max(_known(windows, lambda one: one.temperature_max_c), default=None),
        throttled_s=sum(throttled_s) if throttled_s else None,
        memory_available_min_bytes=min(_known(windows, lambda one: one.memory_available_min_bytes), default=None),
        worker_peak_resident_bytes=max(_known(windows, lambda one: one.worker_peak_resident_bytes), default=None),
        sampling_cpu_s=sum(one.sampling_cpu_s for one in windows),
    )


def _energy(windows: Sequence[HardwareUse]) -> Energy:
    """Returns the energy of the windows that know it. They were told by one sensor: it is found once per process."""
    known = [(one, one.energy.joules) for one in windows if one.energy.joules is not None]
    if not known:
        return windows[-1].energy
    joules = sum(joules for _, joules in known)
    measured_s = sum(one.window_s * one.energy.measured_share for one, _ in known)
    reasons = dict.fromkeys(one.energy.reason for one in windows if one.energy.reason)
    return msgspec.structs.replace(
        known[-1][0].energy,
        joules=joules,
        mean_w=joules / measured_s,
        measured_share=min(1.0, measured_s / sum(one.window_s for one in windows)),
        reason="; ".join(reasons),
    )


_N = TypeVar("_N", int, float)


def _known(windows: Sequence[HardwareUse], read: Callable[[HardwareUse], _N | None]) -> list[_N]:
    return [value for one in windows if (value := read(one)) is not None]


def _mean(windows: Sequence[HardwareUse], read: Callable[[HardwareUse], float | None]) -> float | None:
    known = [(value, one.window_s) for one in windows if (value := read(one)) is not None]
    seconds = sum(window_s for _, window_s in known)
    return sum(value * window_s for value, window_s in known) / seconds if seconds else None
