from __future__ import annotations

import os
from pathlib import Path

from edgefed.devices.cpu import read_cpu


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_instructions_that_decide_a_data_types_speed_are_told(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "processor : 0\nFeatures\t: fp asimd evtstrm asimdhp asimddp i8mm bf16\n")
    assert read_cpu(tmp_path).instructions == ("asimd", "asimdhp", "asimddp", "bf16", "i8mm")


def test_the_clock_is_that_of_the_fastest_core(tmp_path: Path) -> None:
    for core, kilohertz in (("cpu0", "1510400"), ("cpu4", "1984000"), ("cpu5", "not a number")):
        put(tmp_path, f"sys/devices/system/cpu/{core}/cpufreq/cpuinfo_max_freq", kilohertz)
    assert read_cpu(tmp_path).clock_max_hz.value == 1.984e9


def test_what_the_kernel_does_not_tell_is_null_with_a_reason(tmp_path: Path) -> None:
    cpu = read_cpu(tmp_path)
    assert (cpu.model, cpu.clock_max_hz.value, cpu.instructions) == (None, None, ())
    assert "cpufreq" in cpu.clock_max_hz.reason
    assert cpu.usable == len(os.sched_getaffinity(0))
