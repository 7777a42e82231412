from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.power.jetson_ina238 import find_ina238
from edgefed.devices.power.jetson_ina3221 import find_ina3221
from tests.shared.power_reader_suite import PowerReaderSuite, copy_of

MODULES = ("jetson-nano", "jetson-xavier-nx", "jetson-agx-xavier", "jetson-agx-orin", "jetson-orin-nano", "jetson-thor")


class TestIna3221(PowerReaderSuite):
    boards = MODULES
    find = staticmethod(find_ina3221)


class TestIna238(PowerReaderSuite):
    boards = ("jetson-thor",)
    find = staticmethod(find_ina238)


@pytest.mark.parametrize(
    ("board", "rails", "watts"),
    [
        ("jetson-nano", "POM_5V_IN", 4.180),
        ("jetson-xavier-nx", "VDD_IN", 4.952 * 2.240),
        ("jetson-agx-xavier", "GPU + CPU + SOC + CV + VDDRQ + SYS5V", 2.448 + 1.070 + 2.142 + 0 + 0.612 + 2.664),
        (
            "jetson-agx-orin",
            "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
            18.792 * 0.320 + 18.784 * 0.120 + 4.968 * 0.980,
        ),
        ("jetson-orin-nano", "VDD_IN", 4.984 * 1.960),
        (
            "jetson-thor",
            "VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0",
            12.040 * 0.163 + 12.040 * 0.489 + 5.088 * 1.108,
        ),
    ],
)
def test_the_total_of_each_module(tmp_path: Path, board: str, rails: str, watts: float) -> None:
    (reader,) = find_ina3221(copy_of(board, tmp_path)).readers
    assert reader.name.endswith(f": {rails}")
    assert reader.watts() == pytest.approx(watts)
    assert reader.scope == "module"


def test_the_name_says_which_board(tmp_path: Path) -> None:
    (reader,) = find_ina3221(copy_of("jetson-agx-orin", tmp_path)).readers
    assert reader.name.startswith("INA3221 of NVIDIA Jetson AGX Orin Developer Kit: ")


def test_rails_are_told_by_label_without_those_that_are_not_connected_or_no_rails(tmp_path: Path) -> None:
    (reader,) = find_ina3221(copy_of("jetson-agx-orin", tmp_path)).readers
    rails = reader.rails_w()
    assert set(rails) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}
    assert rails["VDDQ_VDD2_1V8AO"] == pytest.approx(4.968 * 0.220)  # kept, though no part of the total


def test_labels_decide_and_not_the_numbers_of_devices_and_channels(tmp_path: Path) -> None:
    chip = copy_of("jetson-orin-nano", tmp_path) / "sys/class/hwmon/hwmon1"
    for name in ("label", "input"):
        first, third = chip / f"in1_{name}", chip / f"in3_{name}"
        first.rename(chip / "aside")
        third.rename(first)
        (chip / "aside").rename(third)
    currents = [(chip / f"curr{channel}_input").read_text() for channel in (3, 2, 1)]
    for channel, current in enumerate(currents, 1):
        (chip / f"curr{channel}_input").write_text(current)
    chip.rename(chip.with_name("hwmon12"))
    (reader,) = find_ina3221(tmp_path).readers
    assert reader.watts() == pytest.approx(4.984 * 1.960)


def test_one_rail_of_a_sum_that_does_not_answer_leaves_no_total(tmp_path: Path) -> None:
    (reader,) = find_ina3221(copy_of("jetson-agx-orin", tmp_path)).readers
    (tmp_path / "sys/class/hwmon/hwmon3/curr2_input").unlink()
    assert reader.watts() is None
    assert "VDD_GPU_SOC" in reader.rails_w()
    assert "VDD_CPU_CV" not in reader.rails_w()


def test_a_rail_a_little_below_zero_counts_in_the_sum_and_is_told_as_zero(tmp_path: Path) -> None:
    (reader,) = find_ina3221(copy_of("jetson-thor", tmp_path)).readers
    (tmp_path / "sys/class/hwmon/hwmon5/curr1_input").write_text("-32\n")  # the GPU is off; a monitor has an offset
    assert reader.rails_w()["VDD_GPU"] == 0
    assert reader.watts() == pytest.approx(12.040 * -0.032 + 12.040 * 0.489 + 5.088 * 1.108)


def test_rails_that_nobody_knows_are_named_and_not_added(tmp_path: Path) -> None:
    chip = copy_of("jetson-orin-nano", tmp_path) / "sys/class/hwmon/hwmon1"
    (chip / "in1_label").write_text("VDD_ELSEWHERE\n")
    found = find_ina3221(tmp_path)
    assert found.readers == ()
    assert "VDD_CPU_GPU_CV, VDD_ELSEWHERE, VDD_SOC" in found.absent[0].reason


def test_thor_is_told_by_its_input_and_not_by_its_module(tmp_path: Path) -> None:
    (reader,) = find_ina238(copy_of("jetson-thor", tmp_path)).readers
    assert reader.name == "INA238 of NVIDIA Jetson AGX Thor Developer Kit: VIN"
    assert reader.watts() == pytest.approx(19.78)
    assert reader.scope == "board"


@pytest.mark.parametrize(("label", "readers"), [("VIN", 1), ("VDD_FAN", 0), (None, 0)])
def test_an_ina238_elsewhere_is_the_input_only_if_it_says_so(tmp_path: Path, label: str | None, readers: int) -> None:
    copy_of("jetson-thor", tmp_path)
    (tmp_path / "sys/class/hwmon/hwmon5/in2_label").write_text("VDD_ELSEWHERE\n")
    if label is not None:
        (tmp_path / "sys/class/hwmon/hwmon6/label").write_text(f"{label}\n")
    assert len(find_ina238(tmp_path).readers) == readers


def test_in_a_container_which_hides_the_device_tree_the_input_is_found_all_the_same(tmp_path: Path) -> None:
    (copy_of("jetson-thor", tmp_path) / "proc/device-tree/model").unlink()
    (reader,) = find_ina238(tmp_path).readers
    assert reader.name == "INA238: VIN"
