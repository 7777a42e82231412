from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgefed.devices.instruments import NO_POWER_SENSOR, Instruments
from edgefed.devices.power.base import Found
from edgefed.devices.power.nvml import find_nvml
from edgefed.devices.power.rapl import find_rapl
from edgefed.devices.sampling import SAMPLE_S, Sampler
from edgefed.devices.sensors import AbsentSensor
from tests.devices.power.recorded_nvml import RecordedNvml
from tests.shared.power_reader_suite import copy_of


def test_a_window_without_a_look_knows_nothing_but_its_length(tmp_path: Path) -> None:
    now = 10.0
    sampler = Sampler(lambda: None, root=tmp_path, clock=lambda: now)
    now = 12.5
    use = sampler.use()
    assert (use.window_s, use.samples) == (2.5, 0)
    assert (use.cpu_percent, use.temperature_max_c, use.throttled_s) == (None, None, None)
    assert (use.memory_available_min_bytes, use.worker_peak_resident_bytes) == (None, None)
    assert use.energy.joules is None
    assert use.energy.reason == NO_POWER_SENSOR


def test_load_memory_and_the_worker_are_seen(tmp_path: Path) -> None:
    code = "import time; block = bytearray(150_000_000); print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        sampler = Sampler(lambda: worker.pid, root=tmp_path)
        sampler.look()
        worker.kill()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:  # something to do for a processor
        pass
    sampler.look()
    use = sampler.use()
    assert use.samples == 2
    assert use.worker_peak_resident_bytes is not None
    assert 150_000_000 < use.worker_peak_resident_bytes < 250_000_000
    assert use.cpu_percent is not None
    assert 50 / (os.cpu_count() or 1) < use.cpu_percent <= 100
    assert use.memory_available_min_bytes
    assert 0 < use.sampling_cpu_s < 0.2


def test_heat_and_throttling_over_time(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    cooler = tmp_path / "sys/class/thermal/cooling_device0"
    for directory in (zone, cooler):
        directory.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (cooler / "type").write_text("Processor\n")
    now = 0.0
    sampler = Sampler(lambda: None, root=tmp_path, clock=lambda: now)
    for temperature, state in ((50_000, 0), (91_000, 2), (60_000, 1), (55_000, 0)):
        now += 0.5
        (zone / "temp").write_text(f"{temperature}\n")
        (cooler / "cur_state").write_text(f"{state}\n")
        sampler.look()
    use = sampler.use()
    assert use.temperature_max_c == 91.0
    assert use.throttled_s == pytest.approx(1.0)


def test_a_counter_of_the_kernel_becomes_the_energy_of_the_window(tmp_path: Path) -> None:
    root = copy_of("x86-rapl", tmp_path)
    counter = root / "sys/class/powercap/intel-rapl:0/energy_uj"
    began_uj = int(counter.read_text())
    counter.write_text(str(began_uj := began_uj - 200_000_000))  # well below where it wraps
    now = 100.0
    sampler = Sampler(
        lambda: None, instruments=Instruments(power=find_rapl(root)), hardware="cpu", root=root, clock=lambda: now
    )
    for look in range(21):
        counter.write_text(str(began_uj + look * 6_000_000))  # 6 J per half second
        sampler.look()
        now += SAMPLE_S
    now -= SAMPLE_S
    energy = sampler.use().energy
    assert energy.joules == pytest.approx(120.0)
    assert energy.mean_w == pytest.approx(12.0)
    assert (energy.method, energy.scope, energy.measured_share, energy.reason) == ("rapl", "package", 1.0, "")
    assert "2 processor packages" in energy.coverage


def test_a_gpus_power_load_heat_and_throttling(tmp_path: Path) -> None:
    library = RecordedNvml("laptop-without-energy-counter")
    nvml = find_nvml(library.lay_out(tmp_path), library=library, visible="0")
    now = 0.0
    sampler = Sampler(
        lambda: None,
        instruments=Instruments(power=nvml.power, nvml=nvml.device),
        hardware="cuda",
        root=tmp_path,
        clock=lambda: now,
    )
    sampler.look()
    for milliwatts, percent, reasons in ((40_000, 80, 0), (60_000, 100, 0x20), (60_000, 90, 0x04), (40_000, 30, 0x01)):
        now += 0.5
        library.answers[0] |= {
            "nvmlDeviceGetPowerUsage": milliwatts,
            "nvmlDeviceGetUtilizationRates": {"gpu": percent, "memory": 0},
            "nvmlDeviceGetCurrentClocksThrottleReasons": reasons,
        }
        sampler.look()
    use = sampler.use()
    assert use.energy.joules == pytest.approx((41.25 + 40) / 4 + 50 / 2 + 60 / 2 + 50 / 2)
    assert (use.energy.method, use.energy.scope) == ("nvml-integrated", "gpu")
    assert use.gpu_percent == pytest.approx(75.0)
    assert use.temperature_max_c == 71
    assert use.throttled_s == pytest.approx(1.0)


def test_a_sensor_that_only_sees_the_idle_gpu_tells_nothing_of_work_on_the_processor(tmp_path: Path) -> None:
    library = RecordedNvml("rtx-4090-desktop")
    nvml = find_nvml(library.lay_out(tmp_path), library=library, visible="0")
    instruments = Instruments(power=nvml.power, nvml=nvml.device)
    energy = Sampler(lambda: None, instruments=instruments, hardware="cpu", root=tmp_path).use().energy
    assert energy.joules is None
    assert energy.reason == "its power sensor sees the GPU only, and training runs on the processor"


def test_a_sensor_that_is_locked_is_the_reason(tmp_path: Path) -> None:
    locked = Instruments(power=Found(absent=(AbsentSensor(name="RAPL", reason="only root may read it"),)))
    energy = Sampler(lambda: None, instruments=locked, root=tmp_path).use().energy
    assert (energy.joules, energy.reason) == (None, "RAPL: only root may read it")


def test_threads_may_look_at_once(tmp_path: Path) -> None:
    sampler = Sampler(lambda: None, root=tmp_path)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(40):
            pool.submit(sampler.look)
    assert sampler.use().samples == 40
