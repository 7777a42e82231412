"""RAPL: the energy counters of x86 processor packages (Intel, and AMD from Zen on), as the powercap class tells them.

Only the zones of packages are read. `core` and `uncore` lie inside them, and `psys` overlaps them all. Since
CVE-2020-8694 (power as a side channel) only root may read the counters, unless the owner of the machine lets a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgefed.devices.power.base import Found
from edgefed.devices.power.counter import GrowingCounter
from edgefed.devices.sensors import AbsentSensor
from edgefed.devices.sysfs import read_integer, read_text
from edgefed.devices.usage import EnergyMethod, EnergyScope

__all__ = ["RaplReader", "find_rapl"]

_LET_THE_GROUP_READ = (
    "let the agent's group read it, and nobody else: put "
    """SUBSYSTEM=="powercap", RUN+="/bin/sh -c 'chgrp edgefed /sys%p/energy_uj; chmod 0440 /sys%p/energy_uj'" """
    "into /etc/udev/rules.d/80-edgefed-rapl.rules, then run "
    "udevadm control --reload && udevadm trigger --action=add --subsystem-match=powercap"
)


@dataclass(frozen=True, slots=True)
class _Zone:
    """A package's counter."""

    energy_uj: Path
    counter: GrowingCounter


class RaplReader:
    """The counters of all processor packages, added up.

    Args:
        zones: directories of the packages' zones.
    """

    name = "RAPL"
    method_integrated: EnergyMethod | None = None
    method_counted: EnergyMethod | None = "rapl"
    scope: EnergyScope = "package"

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = [
            _Zone(zone / "energy_uj", GrowingCounter(read_integer(zone / "max_energy_range_uj"))) for zone in zones
        ]
        packages = "the processor package" if len(zones) == 1 else f"{len(zones)} processor packages"
        self.coverage = f"{packages}: cores, caches and integrated graphics; not memory, disks, GPU cards, power supply"

    def watts(self) -> float | None:
        """Returns None: RAPL counts energy only."""
        return None

    def joules(self) -> float | None:
        """Returns the joules since the counters began, of all packages; None unless all of them answer."""
        readings = [read_integer(zone.energy_uj) for zone in self._zones]
        totals = [zone.counter.read(raw) for zone, raw in zip(self._zones, readings, strict=True) if raw is not None]
        return sum(totals) / 1e6 if len(totals) == len(self._zones) else None

    def rails_w(self) -> dict[str, float]:
        """Returns {}: there are no rails."""
        return {}


def find_rapl(root: Path = Path("/")) -> Found:
    """Returns the reader of this machine's packages, or why their counters cannot be read; neither without RAPL.

    Args:
        root: of the file system that `sys` is read from.
    """
    whole = [zone for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")) if zone.name.count(":") == 1]
    zones = [zone for zone in whole if (read_text(zone / "name") or "").startswith("package")]
    if whole and not any(zone.exists() for zone in whole):  # links that lead nowhere
        return Found(absent=(AbsentSensor(name="RAPL", reason="hidden from this container, as container engines do"),))
    if not zones:
        return Found()
    silent = [zone / "energy_uj" for zone in zones if read_integer(zone / "energy_uj") is None]
    if silent:
        return Found(absent=(_why(silent[0]),))
    return Found(readers=(RaplReader(zones),))


def _why(energy_uj: Path) -> AbsentSensor:
    try:
        energy_uj.read_bytes()
    except PermissionError:
        mode = energy_uj.stat().st_mode & 0o777
        return AbsentSensor(
            name="RAPL", reason=f"{energy_uj} (mode {mode:04o}) may not be read", remedy=_LET_THE_GROUP_READ
        )
    except OSError as error:
        return AbsentSensor(name="RAPL", reason=f"{energy_uj} does not answer: {error.strerror}")
    return AbsentSensor(name="RAPL", reason=f"{energy_uj} holds no number")
