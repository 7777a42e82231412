"""When a device may train: its owner's rules against its present conditions, before a round and during it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import time as time_of_day
from fnmatch import fnmatchcase

from edgefed.agent.options import Eligibility
from edgefed.devices.conditions import Conditions

__all__ = ["Guard", "objections"]

_COOL_DOWN_C = 5.0
"""A device that got too hot goes on once it is this much cooler, and not at the first tenth of a degree."""


def objections(rules: Eligibility, now: Conditions, *, stopped: bool = False) -> list[str]:
    """Returns why a device may not train now, in words; empty when it may. A reading that is missing forbids nothing.

    Args:
        rules: the owner's.
        now: the device's conditions.
        stopped: it has been stopped: heat must have fallen by 5 °C before it goes on.
    """
    found = [_hours(rules, now), _heat(rules, now, stopped), *_power(rules, now), _network(rules, now)]
    if now.memory_available_bytes < rules.min_free_memory_bytes:
        free, wanted = now.memory_available_bytes / 2**20, rules.min_free_memory_bytes / 2**20
        found.append(f"{free:.0f} MiB of memory are free; {wanted:.0f} MiB are wanted")
    if rules.max_load_per_core is not None and now.load_per_core > rules.max_load_per_core:
        found.append(f"the load is {now.load_per_core:.2f} per core; at most {rules.max_load_per_core:g} is allowed")
    return [one for one in found if one]


def _hours(rules: Eligibility, now: Conditions) -> str:
    clock = now.local_time.time().replace(tzinfo=None)
    if not rules.hours or any(_within(clock, span) for span in rules.hours):
        return ""
    return f"it is {clock:%H:%M}; training is allowed {', '.join(rules.hours)}"


def _within(clock: time_of_day, span: str) -> bool:
    start, end = (time_of_day.fromisoformat(part) for part in span.split("-"))
    return start <= clock < end if start < end else clock >= start or clock < end


def _heat(rules: Eligibility, now: Conditions, stopped: bool) -> str:
    if rules.max_temperature_c is None or now.temperature_c is None:
        return ""
    limit = rules.max_temperature_c - (_COOL_DOWN_C if stopped else 0.0)
    if now.temperature_c <= limit:
        return ""
    return f"the hottest sensor reads {now.temperature_c:.0f} °C; at most {limit:.0f} °C is allowed"


def _power(rules: Eligibility, now: Conditions) -> list[str]:
    found = []
    if not rules.on_battery and now.on_mains is False:
        found.append("it runs on its battery")
    if now.on_mains is False and now.battery_percent is not None and now.battery_percent < rules.min_battery_percent:
        found.append(f"the battery is at {now.battery_percent:.0f} %; {rules.min_battery_percent:.0f} % are wanted")
    return found


def _network(rules: Eligibility, now: Conditions) -> str:
    if now.interface is not None and any(fnmatchcase(now.interface, one) for one in rules.metered_interfaces):
        return f"it is on the metered network {now.interface}"
    return ""


class Guard:
    """Looks at the conditions now and then.

    Args:
        rules: the owner's.
        read: returns the present conditions.
    """

    def __init__(self, rules: Eligibility, read: Callable[[], Conditions]) -> None:
        self._rules = rules
        self._read = read

    def objections(self, *, stopped: bool = False) -> list[str]:
        """Returns why the device may not train now; see `objections`."""
        return objections(self._rules, self._read(), stopped=stopped)

    async def until_forbidden(self) -> str:
        """Returns why training must stop, once it must."""
        while not (found := self.objections()):  # noqa: ASYNC110 - the weather has no event to wait for
            await asyncio.sleep(self._rules.check_every_s)
        return "; ".join(found)

    async def until_allowed(self, *, stopped: bool = False) -> None:
        """Returns once training is allowed."""
        while self.objections(stopped=stopped):  # noqa: ASYNC110
            await asyncio.sleep(self._rules.check_every_s)
