"""NVML on machines that answer everything, some of it, or nothing; each question stands on its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.power.nvml import Capability, FoundNvml, NvmlDevice, find_nvml
from tests.devices.power.recorded_nvml import RecordedNvml

ALL: set[Capability] = {"power", "energy", "temperature", "utilization", "memory", "clocks", "throttle"}


def find(root: Path, library: RecordedNvml, visible: str | None = None) -> FoundNvml:
    return find_nvml(library.lay_out(root), library=library, visible=visible or "0")


def device(root: Path, name: str) -> NvmlDevice:
    found = find(root, RecordedNvml(name)).device
    assert found is not None
    return found


def answered(gpu: NvmlDevice) -> set[Capability]:
    for answer in gpu.capabilities.values():
        assert (answer.value is None) == bool(answer.reason)
    return {what for what, answer in gpu.capabilities.items() if answer.value is not None}


def test_a_desktop_gpu_answers_everything_in_our_units(tmp_path: Path) -> None:
    found = find(tmp_path, RecordedNvml("rtx-4090-desktop"))
    assert found.device is not None
    assert answered(found.device) == ALL
    assert {what: answer.value for what, answer in found.device.capabilities.items()} == pytest.approx(
        {
            "power": 287.431, "energy": 918273.645, "temperature": 64, "utilization": 97,
            "memory": 25757220864, "clocks": 2.73e9, "throttle": 1,
        }
    )  # fmt: skip
    assert found.device.throttled() is True
    (reader,) = found.power.readers
    assert (reader.name, reader.scope) == ("NVML of NVIDIA GeForce RTX 4090", "gpu")
    assert (reader.method_integrated, reader.method_counted) == ("nvml-integrated", "nvml-counter")
    assert (reader.watts(), reader.joules(), reader.rails_w()) == (287.431, 918273.645, {})
    assert found.power.absent == ()


def test_that_the_library_starts_proves_nothing_on_orin(tmp_path: Path) -> None:
    library = RecordedNvml("orin-nano-jetpack-6")
    found = find(tmp_path, library)
    assert found.device is not None
    assert found.device.name == "Orin (nvgpu)"
    assert answered(found.device) == set()
    assert found.power.readers == ()
    (absent,) = found.power.absent
    assert (absent.name, absent.reason) == ("NVML of Orin (nvgpu)", "NVML says: Not Supported")
    before = library.asked.total()
    assert [found.device.read(what) for what in ALL] == [None] * len(ALL)
    assert found.device.throttled() is None
    assert library.asked.total() == before, "what was not answered once is not asked again"


def test_thor_tells_its_load_and_no_more(tmp_path: Path) -> None:
    gpu = device(tmp_path, "thor-jetpack-7")
    assert answered(gpu) == {"utilization"}
    assert gpu.read("utilization") == 63


def test_without_an_energy_counter_power_is_integrated(tmp_path: Path) -> None:
    found = find(tmp_path, RecordedNvml("laptop-without-energy-counter"))
    (reader,) = found.power.readers
    assert (reader.method_integrated, reader.method_counted) == ("nvml-integrated", None)
    assert (reader.watts(), reader.joules()) == (41.25, None)
    assert found.device is not None
    assert answered(found.device) == ALL - {"energy"}
    assert found.device.throttled() is False, "asked by the older name"


def test_zeros_are_no_answers(tmp_path: Path) -> None:
    found = find(tmp_path, RecordedNvml("gpu-of-zeros"))
    assert found.device is not None
    assert answered(found.device) == {"utilization", "throttle"}
    assert found.device.capabilities["memory"].reason == "NVML says 0 bytes of memory, which means nothing"
    assert found.power.readers == ()
    assert found.power.absent[0].reason == (
        "power: NVML says 0 W, which means nothing; energy: NVML says 0 J, and no power either"
    )


def test_the_counter_of_a_driver_just_loaded_stands_at_0_and_counts(tmp_path: Path) -> None:
    library = RecordedNvml("rtx-4090-desktop")
    library.answers[0]["nvmlDeviceGetTotalEnergyConsumption"] = 0
    (reader,) = find(tmp_path, library).power.readers
    assert (reader.method_counted, reader.joules()) == ("nvml-counter", 0.0)
    library.answers[0]["nvmlDeviceGetTotalEnergyConsumption"] = 1500
    assert reader.joules() == 1.5


def test_a_gpu_that_is_lost_later_gives_none(tmp_path: Path) -> None:
    library = RecordedNvml("rtx-4090-desktop")
    found = find(tmp_path, library)
    library.answers[0] |= dict.fromkeys(library.answers[0], "GpuIsLost")
    (reader,) = found.power.readers
    assert (reader.watts(), reader.joules()) == (None, None)
    assert found.device is not None
    assert found.device.throttled() is None


def test_nvidia_smi_without_a_driver_says_so_and_loads_no_library(tmp_path: Path) -> None:
    library = RecordedNvml(init="LibraryNotFound")
    found = find_nvml(tmp_path, library=library, which=lambda name: f"/usr/bin/{name}")
    (absent,) = found.power.absent
    assert absent.reason == "nvidia-smi is installed, but no NVIDIA driver is loaded"
    assert "modprobe nvidia" in absent.remedy


def test_a_machine_without_anything_of_nvidias_misses_nothing(tmp_path: Path) -> None:
    assert find_nvml(tmp_path, which=lambda _: None) == FoundNvml()


def test_a_driver_without_the_library(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvhost-gpu").touch()
    (absent,) = find_nvml(tmp_path, library=RecordedNvml(init="LibraryNotFound")).power.absent
    assert absent.reason == "NVML says: NVML Shared Library Not Found"
    assert "JetPack 6" in absent.remedy


def test_a_driver_without_the_python_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    (absent,) = find_nvml(tmp_path).power.absent
    assert (absent.reason, absent.remedy) == (
        "the Python package nvidia-ml-py is not installed", "pip install 'edgefed[gpu]'",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        ("0", "NVIDIA GeForce RTX 4090"),
        ("1,0", "NVIDIA GeForce GTX 1060 with Max-Q Design"),
        ("GPU-4d3c2b1a-0000-4000-8000-000000000004", "NVIDIA GeForce GTX 1060 with Max-Q Design"),
        ("7", None),
        ("-1", None),
        ("MIG-4d3c2b1a", None),
    ],
)
def test_of_several_gpus_the_one_that_cuda_takes_first(tmp_path: Path, visible: str, name: str | None) -> None:
    found = find(tmp_path, RecordedNvml("rtx-4090-desktop", "laptop-without-energy-counter"), visible)
    assert (found.device and found.device.name) == name
    if name is None:
        assert f"CUDA_VISIBLE_DEVICES={visible!r}" in found.power.absent[0].reason
    else:
        assert "1 other GPU" in found.power.readers[0].coverage


def test_the_real_library_knows_every_question_and_constant() -> None:
    pynvml = pytest.importorskip("pynvml")
    recorded = RecordedNvml("rtx-4090-desktop", "laptop-without-energy-counter")
    for name in {name for gpu in recorded.answers for name in gpu}:
        assert callable(getattr(pynvml, name))
    assert (pynvml.NVML_TEMPERATURE_GPU, pynvml.NVML_CLOCK_SM) == (0, 1)
    slowed = (
        pynvml.nvmlClocksEventReasonSwPowerCap
        | pynvml.nvmlClocksEventReasonHwSlowdown
        | pynvml.nvmlClocksEventReasonSwThermalSlowdown
        | pynvml.nvmlClocksEventReasonHwThermalSlowdown
        | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    )
    assert slowed == 0xEC


@pytest.mark.parametrize("bit", [0x04, 0x08, 0x20, 0x40, 0x80])
def test_only_heat_and_power_hold_the_clock_down(tmp_path: Path, bit: int) -> None:
    library = RecordedNvml("rtx-4090-desktop")
    gpu = find(tmp_path, library).device
    assert gpu is not None
    library.answers[0]["nvmlDeviceGetCurrentClocksEventReasons"] = bit | 0x01
    assert gpu.throttled() is True
    library.answers[0]["nvmlDeviceGetCurrentClocksEventReasons"] = 0x01 | 0x02 | 0x10 | 0x100  # idle, set by a user …
    assert gpu.throttled() is False
