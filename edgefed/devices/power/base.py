"""What every reader of a power sensor does, and which of several to believe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from edgefed.devices.sensors import AbsentSensor
from edgefed.devices.usage import EnergyMethod, EnergyScope

__all__ = ["Found", "PowerReader", "choose_reader"]

_WIDEST_FIRST: tuple[EnergyScope, ...] = ("board", "module", "gpu", "package", "unknown")


class PowerReader(Protocol):
    """A sensor that answers, or will. Reading it never raises: a reading that fails is None.

    `watts` and `joules` may be asked several times a second, from one thread at a time.
    """

    @property
    def name(self) -> str:
        """Which sensor, such as "INA3221 of NVIDIA Jetson Orin Nano Developer Kit: VDD_IN"."""

    @property
    def method_integrated(self) -> EnergyMethod | None:
        """The method to tell where joules come from integrating `watts`; None where it has no watts."""

    @property
    def method_counted(self) -> EnergyMethod | None:
        """The method to tell where joules come from its counter; None where it has none."""

    @property
    def scope(self) -> EnergyScope:
        """What the sensor sees; scopes that nest are never added."""

    @property
    def coverage(self) -> str:
        """What the sensor does and does not see, in words."""

    def watts(self) -> float | None:
        """Returns the power now; None where the sensor gave no answer this time."""

    def joules(self) -> float | None:
        """Returns a counter that only grows (its wrapping round is dealt with); None: no counter, or no answer."""

    def rails_w(self) -> dict[str, float]:
        """Returns the power of the parts by label, those that answer; {} where the sensor tells no parts."""


@dataclass(frozen=True, slots=True)
class Found:
    """Sensors that can be read, and those that one would expect and that cannot."""

    readers: tuple[PowerReader, ...] = ()
    absent: tuple[AbsentSensor, ...] = ()

    def __add__(self, other: Found) -> Found:
        return Found(self.readers + other.readers, self.absent + other.absent)


def choose_reader(readers: Iterable[PowerReader]) -> PowerReader | None:
    """Returns the reader to tell energy by; None where there are none. Asks each of them once.

    One reader, not a sum: a board's input feeds its module and the module its GPU, and what is counted twice is worse
    than what is left out. The widest scope wins: board, module, gpu, package, unknown. GPU and processor package do not
    nest; the GPU comes first because it is what trains. Within one scope a counter is better than watts, which are
    integrated from samples; after that the first that was found. One that does not answer now, as a battery on mains,
    comes after all that do.
    """
    return min(readers, key=_order, default=None)


def _order(reader: PowerReader) -> tuple[bool, int, bool]:
    silent = reader.watts() is None and reader.joules() is None
    return silent, _WIDEST_FIRST.index(reader.scope), reader.method_counted is None
