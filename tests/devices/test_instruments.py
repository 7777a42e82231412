"""Which sensor is believed for which work, and what is said where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from edgefed.devices.instruments import NO_POWER_SENSOR, Instruments, find_instruments
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
def test_the_sensor_must_see_what_trains(readers: list[PowerReader], hardware: str, used: PowerReader | None) -> None:
    instruments = Instruments(power=Found(readers=tuple(readers)))
    assert instruments.power_reader(hardware) is used  # type: ignore[arg-type]
    profile = instruments.power_profile("15W", "", hardware)  # type: ignore[arg-type]
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


def test_a_jetsons_own_file_is_believed_before_nvml(tmp_path: Path) -> None:
    zeros = RecordedNvml("gpu-of-zeros")
    nvml = find_nvml(zeros.lay_out(tmp_path), library=zeros, visible="0").device
    load = tmp_path / "load"
    load.write_text("980\n")
    assert Instruments(nvml=nvml, gpu_load=load).gpu_percent() == 98.0
    assert Instruments(nvml=nvml).gpu_percent() == 0.0
    load.unlink()
    assert Instruments(nvml=nvml, gpu_load=load).gpu_percent() is None, "not NVML's 0 in its place"


def test_without_a_gpu_nothing_is_said_of_one() -> None:
    none = Instruments()
    assert (none.gpu_percent(), none.gpu_temperature_c(), none.gpu_throttled()) == (None, None, None)


def test_everything_on_a_machine_is_found(tmp_path: Path) -> None:
    load = tmp_path / "sys/devices/platform/gpu.0/load"
    load.parent.mkdir(parents=True)
    load.write_text("10\n")
    found = find_instruments(copy_of("x86-rapl", tmp_path))
    assert found.gpu_load == load
    assert found.nvml is None
    reader = found.power_reader("cpu")
    assert reader is not None
    assert reader.method_counted == "rapl"
