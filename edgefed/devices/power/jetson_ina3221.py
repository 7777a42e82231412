"""The INA3221 monitors of Jetson modules: three rails each, read over I2C.

Where their files are depends on the release: JetPack 4 has NVIDIA's own driver, an IIO device that tells milliwatts;
JetPack 5, 6 and 7 have the kernel's hwmon driver, which tells millivolts and milliamperes. Numbers of devices change
between boots and channels differ between modules, so rails are known by their labels alone.

Which rails make up the module is known per family (NVIDIA's developer guide, "Software-Based Power Consumption
Modeling"); they are told apart by the labels that a module has:

=====================  ==========================================================================================
Nano                   POM_5V_IN
TX2, Xavier NX,        VDD_IN
Orin NX, Orin Nano
AGX Xavier             GPU + CPU + SOC + CV + VDDRQ + SYS5V, which is the rest
AGX Orin               VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0; VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0
Thor                   VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0, not all of it: its INA238 sees more
=====================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgefed.devices.power.base import Found
from edgefed.devices.sensors import AbsentSensor
from edgefed.devices.sysfs import board_model, read_integer, read_text
from edgefed.devices.usage import EnergyMethod, EnergyScope

__all__ = ["Ina3221Reader", "find_ina3221"]

_CARRIER = "not the carrier board, nor what is plugged into it"
_TOTALS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("VDD_IN",), f"the whole module at its input; {_CARRIER}"),
    (("POM_5V_IN",), f"the whole module at its 5 V input; {_CARRIER}"),
    (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), f"the module, all rails added; {_CARRIER}"),
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), f"the module: its high-voltage rails and its 5 V input; {_CARRIER}"),
    (
        ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
        f"three rails of the module, which are not all that it takes; {_CARRIER}",
    ),
)
"""Labels of the rails that make up a module, and what they cover; the first line whose rails are all there holds."""


@dataclass(frozen=True, slots=True)
class _Rail:
    """One channel: either two files whose product is microwatts, or one file of milliwatts."""

    factors: tuple[Path, ...]
    unit_w: float

    def watts(self) -> float | None:
        """Returns the power now. A rail that carries nothing may read a little less than 0."""
        watts = self.unit_w
        for path in self.factors:
            value = read_integer(path)
            if value is None:
                return None
            watts *= value
        return watts


class Ina3221Reader:
    """All INA3221 of a module.

    Args:
        board: what the device tree calls the board; "" where it does not.
        rails: by label.
        total: labels of the rails that make up the module.
        coverage: what these cover.
    """

    method_integrated: EnergyMethod | None = "ina3221"
    method_counted: EnergyMethod | None = None
    scope: EnergyScope = "module"

    def __init__(self, board: str, rails: Mapping[str, _Rail], total: tuple[str, ...], coverage: str) -> None:
        self.name = f"INA3221{f' of {board}' if board else ''}: {' + '.join(total)}"
        self.coverage = coverage
        self._rails = rails
        self._total = total

    def watts(self) -> float | None:
        """Returns the module's power; None unless all of its rails answer."""
        parts = [self._rails[label].watts() for label in self._total]
        answered = [part for part in parts if part is not None]
        return max(0.0, sum(answered)) if len(answered) == len(parts) else None

    def joules(self) -> float | None:
        """Returns None: there is no counter."""
        return None

    def rails_w(self) -> dict[str, float]:
        """Returns the power of every rail that answers; those of the total are among them."""
        parts = {label: rail.watts() for label, rail in self._rails.items()}
        return {label: max(0.0, part) for label, part in parts.items() if part is not None}


def find_ina3221(root: Path = Path("/")) -> Found:
    """Returns the reader of this module's INA3221, or why they tell no total; neither on a machine without any.

    Args:
        root: of the file system that `sys` and `proc` are read from.
    """
    rails = {**dict(_iio_rails(root)), **dict(_hwmon_rails(root))}
    if not rails:
        return Found()
    for total, coverage in _TOTALS:
        if all(label in rails for label in total):
            reader = Ina3221Reader(board_model(root), rails, total, coverage)
            if reader.watts() is None:
                return _absent(f"its rails do not answer: {', '.join(total)}")
            return Found(readers=(reader,))
    return _absent(f"of its rails ({', '.join(sorted(rails))}) it is not known which make up this board")


def _absent(reason: str) -> Found:
    return Found(absent=(AbsentSensor(name="INA3221", reason=reason),))


def _iio_rails(root: Path) -> Iterator[tuple[str, _Rail]]:
    """Yields the rails of NVIDIA's driver of JetPack 4."""
    for path in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio*device*/rail_name_*")):
        power_mw = path.parent / f"in_power{path.name.removeprefix('rail_name_')}_input"
        if label := _rail_label(path):
            yield label, _Rail((power_mw,), 1e-3)


def _hwmon_rails(root: Path) -> Iterator[tuple[str, _Rail]]:
    """Yields the rails of the kernel's driver; its channels 4 to 7 are shunt voltages and their sum."""
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read_text(chip / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):
            if label := _rail_label(chip / f"in{channel}_label"):
                yield label, _Rail((chip / f"in{channel}_input", chip / f"curr{channel}_input"), 1e-6)


def _rail_label(path: Path) -> str:
    """Returns a rail's label; "" where nothing is connected."""
    label = read_text(path) or ""
    return "" if label == "NC" else label
