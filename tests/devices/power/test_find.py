from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgefed.devices.power.base import Found, choose_reader
from edgefed.devices.power.find import find_readers
from edgefed.devices.sensors import AbsentSensor
from tests.shared.power_reader_suite import FIXTURES, copy_of, recorded

NOTHING = Found()
BOARDS: list[tuple[str, str, str, set[str]]] = [
    ("jetson-nano", "INA3221", "module", set()),
    ("jetson-xavier-nx", "INA3221", "module", set()),
    ("jetson-agx-xavier", "INA3221", "module", set()),
    ("jetson-agx-orin", "INA3221", "module", set()),
    ("jetson-orin-nano", "INA3221", "module", set()),
    ("jetson-thor", "INA238", "board", {"INA3221"}),
    ("raspberry-pi-5", "PMIC", "board", set()),
    ("x86-rapl", "RAPL", "package", set()),
    ("hwmon-laptop", "battery", "board", {"hwmon", "RAPL"}),
]


def find(root: Path, extra: Found = NOTHING) -> Found:
    return find_readers(root, run=recorded(root), which="/usr/bin/{}".format, extra=extra)


@pytest.mark.parametrize(("board", "chosen", "scope", "others"), BOARDS)
def test_what_each_recorded_board_has_and_which_is_believed(
    board: str, chosen: str, scope: str, others: set[str]
) -> None:
    found = find(FIXTURES / board)
    reader = choose_reader(found.readers)
    assert reader is not None
    assert (reader.name.split()[0], reader.scope) == (chosen, scope)
    assert {other.name.split()[0] for other in found.readers if other is not reader} == others
    assert found.absent == ()


def test_every_recorded_board_is_asked_about_and_says_where_it_comes_from() -> None:
    boards = {path.name for path in FIXTURES.iterdir()}
    assert boards == {board for board, *_ in BOARDS}
    for board in boards:
        assert re.search(r"\b(Built|Recorded) from\b", (FIXTURES / board / "README.md").read_text())


def test_a_laptop_is_told_by_its_battery_only_while_it_runs_on_it(tmp_path: Path) -> None:
    status = copy_of("hwmon-laptop", tmp_path) / "sys/class/power_supply/BAT0/status"
    readers = find(tmp_path).readers
    for said, name in (("Charging", "hwmon amdgpu: PPT"), ("Discharging", "battery"), ("Full", "hwmon amdgpu: PPT")):
        status.write_text(f"{said}\n")
        reader = choose_reader(readers)
        assert reader is not None
        assert reader.name == name


def test_a_machine_without_any_says_so_in_words(tmp_path: Path) -> None:
    found = find(tmp_path)
    assert found.readers == ()
    assert "virtual machines" in found.absent[0].reason


def test_what_was_found_by_other_means_comes_first_and_is_enough(tmp_path: Path) -> None:
    silent = AbsentSensor(name="NVML", reason="no driver")
    assert find(tmp_path, Found(absent=(silent,))) == Found(absent=(silent,))
    package = find(FIXTURES / "x86-rapl")
    both = find(FIXTURES / "hwmon-laptop", package)
    assert both.readers[0] is package.readers[0]


def test_this_very_machine_can_be_asked() -> None:
    found = find_readers()
    assert found.readers or found.absent
    for reader in found.readers:
        assert (reader.watts() is not None) or (reader.joules() is not None)
