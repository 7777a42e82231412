"""The GPU: what it says of itself, and in words why there is none to compute on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgefed.devices.measurement import Measurement, absent

__all__ = ["GpuProfile", "gpu_names", "nvidia_driver_is_there", "why_no_gpu"]

# The unified driver, its device node, the two of Jetson's nvgpu driver, and the one that Windows lends to WSL.
_DRIVER = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/nvhost-gpu", "dev/nvgpu", "dev/dxg")


class GpuProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A CUDA device as the runtime describes it.

    Attributes:
        name: as the driver names it.
        compute_capability: such as 8.7.
        integrated: it shares the host's memory.
        memory_total_bytes: that the runtime sees; of the host's memory where it is integrated.
        memory_free_bytes: as the runtime says, which on integrated GPUs leaves out what the host could reclaim.
        sm_count: streaming multiprocessors that are powered: power modes of Jetson boards switch some off.
        clock_hz: highest clock that the runtime allows now.
    """

    name: str
    compute_capability: float
    integrated: bool
    memory_total_bytes: int
    memory_free_bytes: int
    sm_count: int
    clock_hz: Measurement = absent("the CUDA runtime does not tell the clock")


def gpu_names(root: Path = Path("/")) -> list[str]:
    """Returns the models that NVIDIA's kernel driver lists, without loading any library; [] where it lists none."""
    names = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return names


def nvidia_driver_is_there(root: Path = Path("/")) -> bool:
    """Returns whether one of the files shows that a kernel driver of NVIDIA's has made.

    Args:
        root: of the file system that `proc` and `dev` are looked at in.
    """
    return any((root / name).exists() for name in _DRIVER)


def why_no_gpu(
    *,
    torch_cuda: str | None,
    said: str = "",
    root: Path = Path("/"),
    which: Callable[[str], str | None] = shutil.which,
) -> str:
    """Returns in words why torch computes on the CPU of this machine.

    Args:
        torch_cuda: the CUDA version that torch was built for; None for a build without CUDA.
        said: what torch said when it was asked for a GPU.
        root: of the file system that `proc` and `dev` are read from.
        which: finds programs.
    """
    driver = nvidia_driver_is_there(root)
    because = f" (torch: {said})" if said else ""
    if driver and torch_cuda is None:
        return "there is an NVIDIA driver, but this torch is built without CUDA: install the build for its CUDA version"
    if driver:
        return f"there is an NVIDIA driver, but torch, built for CUDA {torch_cuda}, finds no GPU{because}"
    if which("nvidia-smi") is not None:
        return (
            "nvidia-smi is installed, but no NVIDIA driver is loaded: load it (modprobe nvidia), or install the driver "
            f"that belongs to it{because}"
        )
    return "there is no NVIDIA driver on this machine"
