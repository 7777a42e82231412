from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgefed.devices.sampling import NO_POWER_SENSOR, Sampler


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
