"""The INA238 at the input of a Jetson Thor developer kit: module, carrier board and what hangs on it.

The kernel's hwmon driver tells microwatts. The same chip is found on other machines, on rails that nobody here knows:
only beside a Thor's own rails, or where its label says VIN, is it the board's input. (Containers hide the device tree,
so the board's name does not decide.)
"""

from __future__ import annotations

from pathlib import Path

from edgefed.devices.power.base import Found
from edgefed.devices.sensors import AbsentSensor
from edgefed.devices.sysfs import board_model, read_integer, read_text
from edgefed.devices.usage import EnergyMethod, EnergyScope

__all__ = ["Ina238Reader", "find_ina238", "is_board_input"]


class Ina238Reader:
    """The board's input.

    Args:
        board: what the device tree calls the board; "" where it does not.
        chip: directory of the chip's files.
    """

    method_integrated: EnergyMethod | None = "ina238"
    method_counted: EnergyMethod | None = None
    scope: EnergyScope = "board"
    coverage = "the board's input: module, carrier board and what it feeds; not the loss of the power supply outside"

    def __init__(self, board: str, chip: Path) -> None:
        self.name = f"INA238{f' of {board}' if board else ''}: VIN"
        self._power_uw = chip / "power1_input"

    def watts(self) -> float | None:
        """Returns the power that flows into the board."""
        microwatts = read_integer(self._power_uw)
        return None if microwatts is None else max(0.0, microwatts / 1e6)

    def joules(self) -> float | None:
        """Returns None: the kernel's driver tells no energy."""
        return None

    def rails_w(self) -> dict[str, float]:
        """Returns {}: there is one rail."""
        return {}


def is_board_input(chip: Path, root: Path) -> bool:
    """Whether a hwmon chip is the INA238 at the input of a board."""
    if read_text(chip / "name") != "ina238":
        return False
    labels = (root / "sys/class/hwmon").glob("hwmon*/in[123]_label")
    return read_text(chip / "label") == "VIN" or any(read_text(label) == "VDD_CPU_SOC_MSS" for label in labels)


def find_ina238(root: Path = Path("/")) -> Found:
    """Returns the reader of this board's input, or why it does not answer; neither on a machine without one.

    Args:
        root: of the file system that `sys` and `proc` are read from.
    """
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if is_board_input(chip, root):
            reader = Ina238Reader(board_model(root), chip)
            if reader.watts() is None:
                return Found(absent=(AbsentSensor(name="INA238", reason=f"{chip / 'power1_input'} does not answer"),))
            return Found(readers=(reader,))
    return Found()
