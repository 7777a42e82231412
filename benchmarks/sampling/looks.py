"""What one look at the hardware costs, on recorded boards and on this machine."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import psutil

from edgefed.devices.instruments import find_instruments
from edgefed.devices.sampling import SAMPLE_S, Sampler

__all__ = ["cost_on_board", "cost_on_this_machine"]

BOARDS = Path(__file__).parents[2] / "tests" / "fixtures" / "sysfs"
VCGENCMD = '#!/bin/sh\nexec cat "{answers}/$1.txt"\n'


def cost_on_board(board: str, scratch: Path, *, looks: int, repeats: int) -> dict[str, Any]:
    """Return the processor seconds per look with a recorded board's files as the sensors.

    The tree lies on this machine's disk, so that what a driver does on a real board (an I2C transfer per INA3221
    register takes about 0.5 ms, most of it waiting) is not in it; all of edgefed's own work is. A Raspberry Pi's
    `vcgencmd` is a program that prints the recorded answer, and what starting it costs is in.
    """
    root = scratch / board
    shutil.copytree(BOARDS / board, root)
    if (root / "vcgencmd").is_dir():
        program = scratch / "bin" / "vcgencmd"
        program.parent.mkdir(exist_ok=True)
        program.write_text(VCGENCMD.format(answers=root / "vcgencmd"))
        program.chmod(0o755)
        os.environ["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    instruments = find_instruments(root)
    reader = instruments.power_reader()
    per_look = []
    for _ in range(repeats):
        sampler = Sampler(os.getpid, instruments=instruments, root=root)
        began_s = _cpu_s()
        for _ in range(looks):
            sampler.look()
        per_look.append((_cpu_s() - began_s) / looks)
    return {
        "sensors": [one.name for one in instruments.power.readers],
        "energy_told_by": reader.name if reader else None,
        "gpu_load": instruments.gpu_percent() is not None,
        "cpu_s_per_look": statistics.median(per_look),
        "cpu_s_per_look_all": per_look,
        "share_of_a_core": statistics.median(per_look) / SAMPLE_S,
    }


def cost_on_this_machine(window_s: float) -> dict[str, Any]:
    """Return what looking at this machine at 2 Hz takes of one core, pauses between the looks included.

    The whole process counts: waking up and the looks.
    """
    instruments = find_instruments()
    reader = instruments.power_reader()
    sampler = Sampler(lambda: psutil.Process().ppid(), instruments=instruments)
    began_s, began_cpu_s = time.monotonic(), _cpu_s()
    looks = 0
    while time.monotonic() < began_s + window_s:
        sampler.look()
        looks += 1
        time.sleep(SAMPLE_S)
    cpu_s = _cpu_s() - began_cpu_s
    use = sampler.use()
    return {
        "energy_told_by": reader.name if reader else None,
        "why_no_energy": use.energy.reason,
        "window_s": use.window_s,
        "looks": looks,
        "cpu_s_per_look": cpu_s / looks,
        "cpu_s_per_look_as_the_record_tells": use.sampling_cpu_s / looks,
        "share_of_a_core": cpu_s / use.window_s,
    }


def _cpu_s() -> float:
    """Return the processor seconds of this process and of the programs that it has run."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)
