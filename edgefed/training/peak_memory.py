"""The most memory that something took: of torch's allocator on a GPU, of the process's resident set on a CPU."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import torch

__all__ = ["PeakMemory", "peak_resident_bytes"]


class PeakMemory:
    """The most memory in use from its creation on.

    Only one at a time: there is one high-water mark per process and one per GPU, and both are set back. On a CPU it is
    the kernel's mark of the resident set, libraries included; where the kernel does not let it be set back, it is that
    of the process's whole life.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM back to what is resident now

    def so_far_bytes(self) -> int:
        """Returns the peak up to now."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Returns the high-water mark of this process's resident set."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
