"""The processor: its model, how much of it this process may use, and the instructions that matrix products want."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec
import psutil

from edgefed.devices.measurement import Measurement, absent, measured

__all__ = ["CpuProfile", "read_cpu"]

_TELLING = (
    "amx_bf16", "amx_int8", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f", "avx2", "avx_vnni",
    "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
"""Flags of /proc/cpuinfo that decide how fast a data type is: x86, then Arm."""


class CpuProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A processor.

    Attributes:
        model: null where /proc does not say.
        architecture: such as `aarch64`.
        usable: logical processors that this process may run on.
        logical: of the machine.
        physical: cores; null where the system does not tell.
        clock_max_hz: highest clock, as the kernel says.
        instructions: those of its extensions that matter to matrix products.
    """

    model: str | None
    architecture: str
    usable: int
    logical: int
    physical: int | None
    clock_max_hz: Measurement
    instructions: tuple[str, ...] = ()


def read_cpu(root: Path = Path("/")) -> CpuProfile:
    """Returns this machine's processor.

    Args:
        root: of the file system that `proc` and `sys` are read from.
    """
    lines = _cpuinfo(root)
    flags = set(_first(lines, "flags", "Features").split())
    return CpuProfile(
        model=_first(lines, "model name", "Model") or None,
        architecture=platform.machine(),
        usable=len(os.sched_getaffinity(0)),
        logical=os.cpu_count() or 1,
        physical=psutil.cpu_count(logical=False),
        clock_max_hz=_clock(root),
        instructions=tuple(name for name in _TELLING if name in flags),
    )


def _cpuinfo(root: Path) -> list[tuple[str, str]]:
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return []
    split = (line.partition(":") for line in text.splitlines())
    return [(key.strip(), value.strip()) for key, _, value in split]


def _first(lines: list[tuple[str, str]], *keys: str) -> str:
    return next((value for key, value in lines if key in keys and value), "")


def _clock(root: Path) -> Measurement:
    """Returns the highest clock of the fastest core: boards mix large cores and small ones."""
    kilohertz = []
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq"):
        try:
            kilohertz.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    if not kilohertz:
        return absent("the kernel exposes no cpufreq for this processor (so it is in most virtual machines)")
    return measured(max(kilohertz) * 1e3, "cpufreq cpuinfo_max_freq, fastest core")
