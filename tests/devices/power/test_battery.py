from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.power.battery import find_battery
from tests.shared.power_reader_suite import PowerReaderSuite, copy_of

BATTERY = "sys/class/power_supply/BAT0"


class TestBattery(PowerReaderSuite):
    boards = ("hwmon-laptop",)
    find = staticmethod(find_battery)


def test_a_laptop_on_its_battery_takes_what_it_gives(tmp_path: Path) -> None:
    (reader,) = find_battery(copy_of("hwmon-laptop", tmp_path)).readers
    assert (reader.scope, reader.watts()) == ("board", 18.604)


def test_without_power_it_is_voltage_times_current_whatever_its_sign(tmp_path: Path) -> None:
    battery = copy_of("hwmon-laptop", tmp_path) / BATTERY
    (battery / "power_now").unlink()
    (battery / "current_now").write_text("-1208000\n")
    (reader,) = find_battery(tmp_path).readers
    assert reader.watts() == pytest.approx(15.401 * 1.208)


def test_two_batteries_in_use_are_added_and_one_that_rests_is_not(tmp_path: Path) -> None:
    second = copy_of("hwmon-laptop", tmp_path) / "sys/class/power_supply/BAT1"
    second.mkdir()
    for name, text in {"type": "Battery", "status": "Discharging", "power_now": "2000000"}.items():
        (second / name).write_text(f"{text}\n")
    (reader,) = find_battery(tmp_path).readers
    assert reader.watts() == pytest.approx(20.604)
    (second / "status").write_text("Not charging\n")
    assert reader.watts() == pytest.approx(18.604)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_on_mains_there_is_no_answer_until_it_is_unplugged(tmp_path: Path, status: str) -> None:
    path = copy_of("hwmon-laptop", tmp_path) / BATTERY / "status"
    path.write_text(f"{status}\n")
    (reader,) = find_battery(tmp_path).readers
    assert reader.watts() is None
    path.write_text("Discharging\n")
    assert reader.watts() == 18.604


def test_a_battery_that_tells_no_power_says_so(tmp_path: Path) -> None:
    battery = copy_of("hwmon-laptop", tmp_path) / BATTERY
    for name in ("power_now", "current_now"):
        (battery / name).unlink()
    assert "tells no power" in find_battery(tmp_path).absent[0].reason
