"""Which sensor is believed for which work, and what is said where there is none."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgefed.devices.gpu_load import find_gpu_load, read_gpu_percent
from edgefed.devices.instruments import NO_POWER_SENSOR, Hardware, Instruments, find_instruments
from edgefed.devices.power.base import Found, PowerReader
from edgefed.devices.power.nvml import find_nvml
from edgefed.devices.sensors import AbsentSensor
from edgefed.devices.usage import EnergyMethod, EnergyScope
from tests.devices.power.recorded_nvml import RecordedNvml
from tests.shared.power_reader_suite import copy_of


@dataclass
class Sensor:
    """A power sensor that says what a test sets."""

    scope: EnergyScope
    now_w: float | None = 5.0
    counted_j: float | None = None

    method_integrated: EnergyMethod | None = "ina3221"
    method_counted: EnergyMethod | None = None
    coverage: str = "all of it"

    @property
    def name(self) -> str:
        return f"sensor of the {self.scope}"

    def watts(self) -> float | None:
        return self.now_w

    def joules(self) -> float | None:
        return self.counted_j

    def rails_w(self) -> dict[str, float]:
        return {}


MODULE, GPU, PACKAGE = Sensor("module"), Sensor("gpu"), Sensor("package")


@pytest.mark.parametrize(
    ("readers", "hardware", "used"),
    [
        ([PACKAGE, GPU], "cuda", GPU),
        ([PACKAGE, GPU], "cpu", PACKAGE),
        ([PACKAGE, GPU], None, GPU),
        ([GPU, MODULE], "cpu", MODULE),
        ([GPU, MODULE], "cuda", MODULE),
        ([GPU], "cpu", None),
        ([], "cuda", None),
    ],
)
def test_the_sensor_must_see_what_trains(
    readers: list[PowerReader], hardware: Hardware | None, used: PowerReader | None
) -> None:
    instruments = Instruments(power=Found(readers=tuple(readers)))
    assert instruments.power_reader(hardware) is used
    profile = instruments.power_profile("15W", "", hardware)
    assert [one.name for one in profile.sensors] == [one.name for one in readers]
    assert [one.name for one in profile.sensors if one.used] == [one.name for one in (used,) if one]
    assert profile.mode == "15W"


def test_why_there_is_no_power_is_said_in_the_sensors_own_words() -> None:
    assert Instruments().why_no_power() == NO_POWER_SENSOR
    locked = AbsentSensor(name="RAPL", reason="only root may read it", remedy="a udev rule")
    silent = AbsentSensor(name="NVML of Orin (nvgpu)", reason="NVML says: Not Supported")
    instruments = Instruments(power=Found(absent=(locked, silent)))
    assert instruments.why_no_power() == ("RAPL: only root may read it; NVML of Orin (nvgpu): NVML says: Not Supported")
    assert instruments.power_profile(None, "no modes").absent == (locked, silent)
    assert "training runs on the processor" in Instruments(power=Found(readers=(GPU,))).why_no_power()


def test_a_jetsons_kernel_is_believed_before_nvml(tmp_path: Path) -> None:
    root = copy_of("jetson-orin-nano", tmp_path)
    zeros = RecordedNvml("gpu-of-zeros")
    nvml = find_nvml(zeros.lay_out(root), library=zeros, visible="0").device
    load = find_gpu_load(root)
    assert load is not None
    assert Instruments(nvml=nvml, gpu_load=load).gpu_percent() == read_gpu_percent(load) != 0
    assert Instruments(nvml=nvml).gpu_percent() == 0.0
    shutil.rmtree(root / "sys")
    assert Instruments(nvml=nvml, gpu_load=load).gpu_percent() is None, "not NVML's 0 in its place"


def test_without_a_gpu_nothing_is_said_of_one() -> None:
    none = Instruments()
    assert (none.gpu_percent(), none.gpu_temperature_c(), none.gpu_throttled()) == (None, None, None)


@pytest.mark.parametrize(
    ("board", "hardware", "scope", "load"),
    [
        ("x86-rapl", "cpu", "package", False),
        ("jetson-orin-nano", "cuda", "module", True),
        ("jetson-thor", "cuda", "board", False),
    ],
)
def test_what_a_recorded_board_has_is_found(
    tmp_path: Path, board: str, hardware: Hardware, scope: EnergyScope, load: bool
) -> None:
    found = find_instruments(copy_of(board, tmp_path))
    reader = found.power_reader(hardware)
    assert reader is not None
    assert reader.scope == scope
    assert (found.gpu_percent() is not None) == load
    (used,) = (one for one in found.power_profile(None, "").sensors if one.used)
    assert used.scope == scope


def test_a_machine_without_sensors_says_so(tmp_path: Path) -> None:
    found = find_instruments(tmp_path)
    assert found.power_reader() is None
    assert "exposes none to Linux" in found.why_no_power()
