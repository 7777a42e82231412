"""Power and energy that other drivers tell through the kernel's hwmon class (Documentation/hwmon/sysfs-interface.rst).

`powerN_input` (or `powerN_average`) is microwatts, `energyN_input` microjoules. Which channel stands for the whole,
and what the whole is, depends on the driver; of a driver that is not known here, a single channel is told with unknown
scope, and of several it is not guessed which to take.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgefed.devices.power.base import Found
from edgefed.devices.power.counter import GrowingCounter
from edgefed.devices.power.jetson_ina238 import is_board_input
from edgefed.devices.sensors import AbsentSensor
from edgefed.devices.sysfs import read_integer, read_text
from edgefed.devices.usage import EnergyMethod, EnergyScope

__all__ = ["HwmonReader", "find_hwmon"]


@dataclass(frozen=True, slots=True)
class _Driver:
    """What is known of a driver: scope, coverage, and the label of its channel that stands for the whole."""

    scope: EnergyScope
    coverage: str
    label: str | None = None


_DRIVERS = {
    "amdgpu": _Driver(
        "gpu", "what the GPU's firmware tracks: a card's chip and memory; on an APU the whole processor package", "PPT"
    ),
    "corsairpsu": _Driver("board", "all that the power supply gives; not its own loss", "power total"),
    "i915": _Driver("gpu", "the GPU card, as its driver tells"),
    "power_meter": _Driver("board", "the whole machine, as its firmware (ACPI) tells"),
    "xe": _Driver("gpu", "the GPU card, as its driver tells", "card"),
}


@dataclass(frozen=True, slots=True)
class _Channel:
    """Files of one label; either may be missing."""

    label: str
    power_uw: Path | None = None
    energy_uj: Path | None = None


class HwmonReader:
    """One channel of a chip.

    Args:
        chip: name of its driver.
        channel: the one that stands for the whole.
        driver: what is known of it.
    """

    def __init__(self, chip: str, channel: _Channel, driver: _Driver) -> None:
        self.name = f"hwmon {chip}{f': {channel.label}' if channel.label else ''}"
        self.method_integrated: EnergyMethod | None = "hwmon-integrated" if channel.power_uw else None
        self.method_counted: EnergyMethod | None = "hwmon-counter" if channel.energy_uj else None
        self.scope: EnergyScope = driver.scope
        self.coverage = driver.coverage
        self._channel = channel
        self._counter = GrowingCounter()

    def watts(self) -> float | None:
        """Returns the power, which some drivers average over a second."""
        microwatts = read_integer(self._channel.power_uw) if self._channel.power_uw else None
        return None if microwatts is None else max(0.0, microwatts / 1e6)

    def joules(self) -> float | None:
        """Returns the driver's counter, going on where it begins again."""
        microjoules = read_integer(self._channel.energy_uj) if self._channel.energy_uj else None
        return None if microjoules is None or microjoules < 0 else self._counter.read(microjoules) / 1e6

    def rails_w(self) -> dict[str, float]:
        """Returns {}: channels of other labels overlap this one in ways that differ between drivers."""
        return {}


def find_hwmon(root: Path = Path("/")) -> Found:
    """Returns a reader for each chip that tells its power or energy, and those of which the whole is not known.

    Left out are chips that have a reader of their own, and batteries, which hwmon repeats.

    Args:
        root: of the file system that `sys` is read from.
    """
    supplies = {path.name.replace("-", "_") for path in (root / "sys/class/power_supply").glob("*")}
    found = Found()
    for directory in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_text(directory / "name") or ""
        if name != "ina3221" and name not in supplies and not is_board_input(directory, root):
            found += _look_at(directory, name)
    return found


def _look_at(directory: Path, name: str) -> Found:
    channels = list(_channels(directory))
    known = _DRIVERS.get(name)
    if known is not None and known.label is not None:
        channels = [channel for channel in channels if channel.label == known.label]
    if not channels:
        return Found()
    if len(channels) > 1:
        labels = ", ".join(sorted(channel.label for channel in channels))
        reason = f"of its channels ({labels}) it is not known which stands for the whole"
        return Found(absent=(AbsentSensor(name=f"hwmon {name}", reason=reason),))
    unknown = _Driver("unknown", f"what driver {name} measures here is not known")
    return Found(readers=(HwmonReader(name, channels[0], known or unknown),))


def _channels(directory: Path) -> Iterator[_Channel]:
    """Yields the channels that answer, power and energy of one label together."""
    power = {_label(path): path for path in _answering(directory, "power[0-9]*_average", "power[0-9]*_input")}
    energy = {_label(path): path for path in _answering(directory, "energy[0-9]*_input")}
    for label in sorted({**power, **energy}):
        yield _Channel(label, power.get(label), energy.get(label))


def _answering(directory: Path, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in sorted(directory.glob(pattern)) if read_integer(path) is not None]


def _label(path: Path) -> str:
    """Returns a channel's label, or else the number of the channel."""
    channel = path.name.partition("_")[0]
    return read_text(path.with_name(f"{channel}_label")) or "".join(filter(str.isdecimal, channel))
