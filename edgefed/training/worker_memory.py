"""A worker's memory: the most that a round has taken, and giving back what is free but kept."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["forget_peak", "give_back", "peak_memory_bytes", "peak_resident_bytes"]


def give_back() -> None:
    """Returns what the C library's allocator keeps of freed memory to the system."""
    with suppress(OSError, AttributeError):  # glibc can; elsewhere the memory stays with the allocator
        ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> None:
    """Sets the marks back to what is in use now, so that a warm worker's next round has a peak of its own."""
    with suppress(OSError):  # some containers forbid it; the mark is then of the worker's whole life
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(place: torch.device) -> int:
    """Returns the most memory that training took: of the CUDA allocator on a GPU, else the resident set."""
    return int(torch.cuda.max_memory_reserved(place)) if place.type == "cuda" else peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Returns the largest resident set since `forget_peak`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
