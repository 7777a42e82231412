from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.power.base import Found
from edgefed.devices.power.raspberry_pi import find_pmic
from tests.shared.power_reader_suite import PowerReaderSuite, copy_of, recorded


def find(root: Path) -> Found:
    return find_pmic(root, run=recorded(root), which=lambda name: f"/usr/bin/{name}")


class TestPmic(PowerReaderSuite):
    boards = ("raspberry-pi-5",)
    find = staticmethod(find)


def test_watts_are_the_fit_of_the_rails_that_have_voltage_and_current(tmp_path: Path) -> None:
    answer = copy_of("raspberry-pi-5", tmp_path) / "vcgencmd/pmic_read_adc.txt"
    answer.write_text(
        " 3V3_SYS_A current(1)=0.50000000A\n"
        "VDD_CORE_A current(7)=2.00000000A\n"
        "  ALONE_A current(9)=7.00000000A\n"
        "VDD_CORE_V volt(15)=0.90000000V\n"
        " 3V3_SYS_V volt(9)=3.30000000V\n"
        " EXT5V_V volt(24)=5.09066000V\n"
    )
    (reader,) = find(tmp_path).readers
    assert reader.rails_w() == {"3V3_SYS": pytest.approx(1.65), "VDD_CORE": pytest.approx(1.8)}
    assert reader.watts() == pytest.approx(1.1451 * 3.45 + 0.5879)


def test_all_twelve_rails_are_read(tmp_path: Path) -> None:
    (reader,) = find(copy_of("raspberry-pi-5", tmp_path)).readers
    assert len(reader.rails_w()) == 12
    assert reader.name == "PMIC of Raspberry Pi 5 Model B Rev 1.0"


def test_a_missing_vcgencmd_is_told_with_what_to_install(tmp_path: Path) -> None:
    root = copy_of("raspberry-pi-5", tmp_path)
    (absent,) = find_pmic(root, run=recorded(root), which=lambda _: None).absent
    assert "not installed" in absent.reason
    assert "raspi-utils" in absent.remedy


def test_a_firmware_that_refuses_is_told_with_the_group(tmp_path: Path) -> None:
    root = copy_of("raspberry-pi-5", tmp_path)
    (root / "vcgencmd/pmic_read_adc.txt").write_text("VCHI initialization failed\n")
    (absent,) = find(root).absent
    assert "group video" in absent.remedy


def test_an_older_board_senses_no_current(tmp_path: Path) -> None:
    root = copy_of("raspberry-pi-5", tmp_path)
    (root / "proc/device-tree/model").write_text("Raspberry Pi 4 Model B Rev 1.4\0")
    (root / "vcgencmd/pmic_read_adc.txt").write_text('error=1 error_msg="Command not registered"\n')
    (absent,) = find(root).absent
    assert "Raspberry Pi 4 Model B Rev 1.4 senses no current" in absent.reason
