"""Jetsons, from the recorded trees; and what else is told of these boards, from the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.jetson import JetsonGpuClock, read_gpu_clock, read_l4t
from edgefed.devices.power_mode import read_power_mode
from edgefed.devices.sensors import read_thermal
from edgefed.devices.sysfs import board_model
from tests.shared.power_reader_suite import FIXTURES, copy_of

BOARDS = [
    ("jetson-nano", "32.7.1", (614, 77, 922), "MAXN"),
    ("jetson-xavier-nx", "35.4.1", (803, 115, 1109), "MODE_20W_6CORE"),
    ("jetson-agx-xavier", "32.7.5", (523, 115, 676), "MODE_15W"),
    ("jetson-agx-orin", "36.4.3", (612, 306, 612), "MODE_30W"),
    ("jetson-orin-nano", "36.4.3", (918, 306, 918), "25W"),
    ("jetson-thor", "38.2.0", (1575, 315, 1575), "120W"),
]


@pytest.mark.parametrize(("board", "l4t", "clock_mhz", "mode"), BOARDS)
def test_recorded_boards(board: str, l4t: str, clock_mhz: tuple[int, int, int], mode: str) -> None:
    root = FIXTURES / board
    assert read_l4t(root) == l4t
    clock = read_gpu_clock(root)
    assert clock is not None
    assert (round(clock.current_hz / 1e6), round(clock.min_hz / 1e6), round(clock.max_hz / 1e6)) == clock_mhz
    assert read_power_mode(root) == (mode, "")


@pytest.mark.parametrize("board", [board for board, *_ in BOARDS])
def test_heat_of_recorded_boards(board: str) -> None:
    thermal = read_thermal(FIXTURES / board)
    assert len(thermal.temperature_c) >= 4
    assert all(20 < celsius <= 100 for celsius in thermal.temperature_c.values())
    assert not thermal.throttled


def test_the_model_is_told_without_the_zero_at_its_end() -> None:
    assert board_model(FIXTURES / "jetson-thor") == "NVIDIA Jetson AGX Thor Developer Kit"


def test_other_machines_have_none_of_it(tmp_path: Path) -> None:
    for root in (tmp_path, FIXTURES / "x86-rapl", FIXTURES / "raspberry-pi-5"):
        assert (read_l4t(root), read_gpu_clock(root)) == (None, None)


def test_a_clock_that_does_not_answer_is_not_told(tmp_path: Path) -> None:
    node = copy_of("jetson-orin-nano", tmp_path) / "sys/class/devfreq/17000000.gpu"
    (node / "max_freq").unlink()
    assert read_gpu_clock(tmp_path) is None


def test_other_devices_of_the_clock_class_are_not_the_gpu(tmp_path: Path) -> None:
    devfreq = copy_of("jetson-orin-nano", tmp_path) / "sys/class/devfreq"
    (devfreq / "17000000.gpu").rename(devfreq / "15340000.vic")
    assert read_gpu_clock(tmp_path) is None
    (devfreq / "15340000.vic").rename(devfreq / "17000000.ga10b")
    assert read_gpu_clock(tmp_path) == JetsonGpuClock(current_hz=918000000, min_hz=306000000, max_hz=918000000)
