"""The power controller (PMIC) of a Raspberry Pi 5, asked through the firmware's `vcgencmd pmic_read_adc`.

It tells voltage and current of twelve rails that it feeds. USB devices, HATs and its own loss are not among them, so
the board's power is a fit against a meter at the supply: 1.1451 times the sum of the rails, and 0.5879 W
(https://pitop.hongjunwu.com/guide/power). Boards before the Pi 5 sense no current.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from edgefed.devices.power.base import Found
from edgefed.devices.programs import Run, run_program
from edgefed.devices.sensors import AbsentSensor
from edgefed.devices.sysfs import board_model
from edgefed.devices.usage import EnergyMethod, EnergyScope

__all__ = ["PmicReader", "find_pmic"]

_COMMAND = ("vcgencmd", "pmic_read_adc")
_SLOPE = 1.1451
_OFFSET_W = 0.5879
_LINE = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(\d+\.\d+)[AV]\s*$", re.MULTILINE)
"""Such as `VDD_CORE_A current(7)=1.12518000A`; numbers in brackets are channels, and pair nothing."""


class PmicReader:
    """A Raspberry Pi's rails. Each reading starts a program, which takes some milliseconds.

    Args:
        board: what the device tree calls the board.
        run: runs a program.
    """

    method_integrated: EnergyMethod | None = "pmic-fit"
    method_counted: EnergyMethod | None = None
    scope: EnergyScope = "board"
    coverage = (
        "the board, fitted from the rails of its power controller: the fit stands for its loss and a usual load; "
        "what USB devices and HATs draw is not measured"
    )

    def __init__(self, board: str, run: Run) -> None:
        self.name = f"PMIC of {board}"
        self._run = run

    def watts(self) -> float | None:
        """Returns the fitted power of the board; None unless rails answer."""
        rails = self.rails_w()
        return _SLOPE * sum(rails.values()) + _OFFSET_W if rails else None

    def joules(self) -> float | None:
        """Returns None: there is no counter."""
        return None

    def rails_w(self) -> dict[str, float]:
        """Returns the power of each rail that tells both voltage and current, as measured."""
        readings = {(rail, unit): float(value) for rail, unit, value in _LINE.findall(self._run(_COMMAND) or "")}
        return {
            rail: amperes * readings[rail, "V"]
            for (rail, unit), amperes in readings.items()
            if unit == "A" and (rail, "V") in readings
        }


def find_pmic(
    root: Path = Path("/"),
    *,
    run: Run = run_program,
    which: Callable[[str], str | None] = shutil.which,
) -> Found:
    """Returns the reader of a Raspberry Pi's power controller, or why there is none; neither on other boards.

    Args:
        root: of the file system that `proc` is read from.
        run: runs a program.
        which: finds a program.
    """
    board = board_model(root)
    if not board.startswith("Raspberry Pi"):
        return Found()
    if which(_COMMAND[0]) is None:
        return _absent("vcgencmd is not installed", "install raspi-utils (Raspberry Pi OS: apt install raspi-utils)")
    reader = PmicReader(board, run)
    if reader.watts() is not None:
        return Found(readers=(reader,))
    if not re.match(r"Raspberry Pi (5|500|Compute Module 5)\b", board):
        return _absent(f"a {board} senses no current", "measure at its supply: only the Pi 5 and later sense current")
    return _absent("vcgencmd pmic_read_adc does not answer", "add the agent's user to group video, which may ask it")


def _absent(reason: str, remedy: str) -> Found:
    return Found(absent=(AbsentSensor(name="PMIC", reason=reason, remedy=remedy),))
