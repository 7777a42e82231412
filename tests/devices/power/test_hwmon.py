from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.power.hwmon import find_hwmon
from tests.shared.power_reader_suite import FIXTURES, PowerReaderSuite, copy_of


class TestHwmon(PowerReaderSuite):
    boards = ("hwmon-laptop",)
    find = staticmethod(find_hwmon)


def chip(root: Path, number: int, **files: str) -> Path:
    directory = root / f"sys/class/hwmon/hwmon{number}"
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(f"{text}\n")
    return directory


def test_a_gpu_is_told_by_its_driver_and_the_battery_is_not_told_twice(tmp_path: Path) -> None:
    (reader,) = find_hwmon(copy_of("hwmon-laptop", tmp_path)).readers
    assert reader.name == "hwmon amdgpu: PPT"
    assert reader.scope == "gpu"
    assert reader.watts() == pytest.approx(9.037)


@pytest.mark.parametrize("board", ["jetson-orin-nano", "jetson-agx-orin", "jetson-thor", "raspberry-pi-5", "x86-rapl"])
def test_chips_that_have_a_reader_of_their_own_are_left_to_it(board: str) -> None:
    assert find_hwmon(FIXTURES / board).readers == ()


def test_the_card_is_the_whole_of_an_intel_gpu_and_has_watts_and_a_counter(tmp_path: Path) -> None:
    directory = chip(
        tmp_path,
        3,
        name="xe",
        energy1_label="card",
        energy1_input="5000000",
        energy2_label="pkg",
        energy2_input="3000000",
        power1_label="card",
        power1_input="41000000",
    )
    (reader,) = find_hwmon(tmp_path).readers
    assert (reader.scope, reader.watts(), reader.joules()) == ("gpu", 41.0, 5.0)
    assert (reader.method_integrated, reader.method_counted) == ("hwmon-integrated", "hwmon-counter")
    (directory / "energy1_input").write_text("1000000\n")  # its driver was loaded anew
    assert reader.joules() == 6.0


def test_one_channel_of_an_unknown_driver_is_told_with_unknown_scope(tmp_path: Path) -> None:
    chip(tmp_path, 0, name="ina226", power1_input="4113120")
    (reader,) = find_hwmon(tmp_path).readers
    assert reader.scope == "unknown"
    assert reader.watts() == pytest.approx(4.11312)
    assert "ina226" in reader.coverage


def test_of_several_channels_of_an_unknown_driver_none_is_guessed(tmp_path: Path) -> None:
    chip(tmp_path, 0, name="zenpower", power1_input="5", power1_label="core", power2_input="6", power2_label="soc")
    found = find_hwmon(tmp_path)
    assert found.readers == ()
    assert "(core, soc)" in found.absent[0].reason


def test_a_channel_that_does_not_answer_is_no_channel(tmp_path: Path) -> None:
    chip(tmp_path, 0, name="power_meter", power1_average="broken")
    assert find_hwmon(tmp_path).readers == ()
    chip(tmp_path, 1, name="power_meter", power1_average="180000000")
    (reader,) = find_hwmon(tmp_path).readers
    assert (reader.scope, reader.watts()) == ("board", 180.0)
