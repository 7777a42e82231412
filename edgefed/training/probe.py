"""How fast this machine multiplies matrices and moves memory: short runs of the kernels that training uses.

Data sheets do not tell: power modes switch off parts of a GPU, libraries lack kernels for it, and heat slows it down. A
data type counts as available once a kernel has run and its result was right.
"""

from __future__ import annotations

import importlib.metadata
import logging
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import psutil
import torch

from edgefed.devices.compute import DATA_TYPES, LEFT_OUT, ComputeProfile, DataType, MachineProbe
from edgefed.devices.gpu import GpuProfile, why_no_gpu
from edgefed.devices.measurement import Measurement, absent, measured
from edgefed.errors import ModelError

__all__ = ["Report", "matmul_rate", "probe", "read_gpu"]

Report = Callable[[str, int, int], None]
"""Called with what is measured next, its number, and how many there are."""

_DTYPES: dict[DataType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NEEDS: dict[DataType, tuple[float, str]] = {
    "bf16": (8.0, "torch would emulate it"),
    "int8": (7.5, "bitsandbytes has no kernel for less"),
    "nf4": (6.0, "bitsandbytes has no kernel for less"),
}
"""Least compute capability on a GPU, and what happens below (bitsandbytes' documentation)."""

_WINDOW_S = 0.05
_LARGEST = 8192
_SEARCH_S = 0.01
_ENOUGH_S = 0.01  # above what threads wait for each other on a busy machine: a small product measures only that
_TOKENS = 1024  # a micro-batch of 4 texts of 256 tokens; dequantization is spread over so many
_LAYER = 1024  # between d_model and d_ff of the base size
_COPY_BYTES = 160 << 20  # twice that is beyond any processor's cache
_QUICK: tuple[DataType, ...] = ("fp32", "bf16")


def probe(
    hardware: Literal["auto", "cpu", "cuda"] = "auto",
    *,
    threads: int = 0,
    quick: bool = False,
    report: Report = lambda _what, _step, _steps: None,
) -> MachineProbe:
    """Measures the machine that training would run on.

    Args:
        hardware: `auto` takes a GPU where there is one.
        threads: CPU threads; 0 leaves torch's choice.
        quick: only fp32, bf16 and the memory, about half a second in all; else about a second for each data type.
        report: sees what is measured next.

    Raises:
        ModelError: `cuda` was asked for, and there is no GPU.
    """
    if threads:
        torch.set_num_threads(threads)
    gpu, reason = (None, "the owner set worker.device to cpu") if hardware == "cpu" else read_gpu()
    if hardware == "cuda" and gpu is None:
        raise ModelError(f"device 'cuda' was asked for, and torch finds none: {reason}; use 'auto' or 'cpu'")
    place = torch.device("cpu" if gpu is None else "cuda")
    budget_s = 0.1 if quick else 0.8
    rates: dict[DataType, Measurement] = {}
    for number, name in enumerate(DATA_TYPES, 1):
        report(name, number, len(DATA_TYPES) + 1)
        rates[name] = absent(LEFT_OUT) if quick and name not in _QUICK else _rate_of(name, gpu, place, budget_s)
    report("memory bandwidth", len(DATA_TYPES) + 1, len(DATA_TYPES) + 1)
    compute = ComputeProfile(
        hardware="cpu" if gpu is None else "cuda",
        threads=torch.get_num_threads(),
        flops_per_s=rates,
        memory_bandwidth_bytes_per_s=_guarded(lambda: _copy_rate(place, budget_s)),
        torch_version=str(torch.__version__),
        bitsandbytes_version=_version("bitsandbytes"),
    )
    if gpu is not None:
        torch.cuda.empty_cache()
    return MachineProbe(compute=compute, gpu=gpu, why_no_gpu=reason)


def read_gpu(cuda: Any = torch.cuda, torch_cuda: str | None = torch.version.cuda) -> tuple[GpuProfile | None, str]:
    """Returns the GPU that training would use, or None and why there is none.

    Args:
        cuda: torch's module.
        torch_cuda: the CUDA version that torch was built for.
    """
    try:
        if not cuda.is_available():
            said = ""
            if torch_cuda is not None:
                try:
                    cuda.init()
                except (RuntimeError, AssertionError) as error:
                    said = _first_line(error)
            return None, why_no_gpu(torch_cuda=torch_cuda, said=said)
        properties = cuda.get_device_properties(0)
        free, total = cuda.mem_get_info(0)
    except (RuntimeError, AssertionError) as error:
        return None, f"the GPU does not answer: {_first_line(error)}"
    if not total or not properties.total_memory:
        return None, (
            f"the GPU {properties.name!r} reports 0 bytes of memory, so nothing can run on it; "
            "restart it or reload its driver, or set worker.device to cpu"
        )
    kilohertz = getattr(properties, "clock_rate", 0)
    return GpuProfile(
        name=properties.name,
        compute_capability=float(f"{properties.major}.{properties.minor}"),
        integrated=bool(properties.is_integrated),
        memory_total_bytes=total,
        memory_free_bytes=free,
        sm_count=properties.multi_processor_count,
        clock_hz=measured(kilohertz * 1e3, "CUDA device properties")
        if kilohertz
        else absent("the CUDA runtime does not tell the clock"),
    ), ""


def matmul_rate(dtype: torch.dtype, place: torch.device, budget_s: float) -> tuple[float, int]:
    """Returns FLOP/s of square matrix products, and their size: the first that takes long enough."""
    enough_s = max(budget_s / 32, _ENOUGH_S)
    size = 128
    product, operands = _product_of(size, dtype, place)
    room = _available_bytes(place) / 100
    while size < _LARGEST and operands < room and _best_s(product, place) < enough_s:
        size *= 2
        product, operands = _product_of(size, dtype, place)
    rate = _rate(product, 2.0 * size**3, budget_s, place)
    c = product()
    if not bool(torch.isfinite(c.float()).all()):
        raise ArithmeticError("the product is not finite")
    return rate, size


def _product_of(size: int, dtype: torch.dtype, place: torch.device) -> tuple[Callable[[], torch.Tensor], int]:
    """Returns a square product, ready to run again and again, and the bytes of one of its matrices."""
    a, b, c = (torch.randn(size, size, device=place).to(dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=c), a.nbytes


def _best_s(run: Callable[[], object], place: torch.device) -> float:
    """Returns the least of some runs: the first ones load kernels, and threads may have to wait for a core."""
    until_s = time.perf_counter() + _SEARCH_S
    best_s = min(_seconds(run, 1, place) for _ in range(4))
    while time.perf_counter() < until_s:
        best_s = min(best_s, _seconds(run, 1, place))
    return best_s


def _rate_of(name: DataType, gpu: GpuProfile | None, place: torch.device, budget_s: float) -> Measurement:
    least, below = _NEEDS.get(name, (0.0, ""))
    if gpu is not None and gpu.compute_capability < least:
        return absent(f"{name} needs compute capability {least}, and this GPU has {gpu.compute_capability}: {below}")
    if name in _DTYPES:
        return _guarded(lambda: _product(_DTYPES[name], place, budget_s))
    return _guarded(lambda: _quantized_layer(name, gpu, place, budget_s))


def _guarded(measure: Callable[[], Measurement]) -> Measurement:
    """Returns what `measure` returns; a kernel that is not there or fails makes a figure that says so."""
    try:
        return measure()
    except ImportError as error:
        return absent(f"{_first_line(error)}: pip install 'edgefed[train]'")
    except (RuntimeError, NotImplementedError, ArithmeticError, AttributeError, AssertionError) as error:
        return absent(f"it does not run here: {_first_line(error)}")


def _product(dtype: torch.dtype, place: torch.device, budget_s: float) -> Measurement:
    rate, size = matmul_rate(dtype, place, budget_s)
    return measured(rate, f"torch.mm {size}×{size}×{size}, median of windows of {_WINDOW_S:g} s")


def _quantized_layer(name: DataType, gpu: GpuProfile | None, place: torch.device, budget_s: float) -> Measurement:
    """Returns FLOP/s of a frozen linear layer's forward and backward, as `base_model` would load it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes

    dtype = torch.bfloat16 if gpu is not None and gpu.compute_capability >= 8.0 else torch.float32
    if name == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(_LAYER, _LAYER, bias=False, has_fp16_weights=False, threshold=6.0)
    else:
        layer = bitsandbytes.nn.Linear4bit(
            _LAYER, _LAYER, bias=False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4"
        )
    layer = layer.to(place)
    layer.requires_grad_(False)
    tokens = torch.randn(_TOKENS, _LAYER, device=place, dtype=dtype, requires_grad=True)
    gradient = torch.randn(_TOKENS, _LAYER, device=place, dtype=dtype)

    def step() -> None:
        tokens.grad = None
        layer(tokens).backward(gradient)

    rate = _rate(step, 4.0 * _TOKENS * _LAYER * _LAYER, budget_s, place)
    if tokens.grad is None or not bool(torch.isfinite(tokens.grad).all()) or not bool(tokens.grad.any()):
        raise ArithmeticError("the layer's gradient is zero or not finite")
    return measured(
        rate, f"bitsandbytes layer {_LAYER}×{_LAYER}, forward and backward of {_TOKENS} tokens, computing in {dtype}"
    )


def _copy_rate(place: torch.device, budget_s: float) -> Measurement:
    size_bytes = min(_COPY_BYTES, _available_bytes(place) // 16) >> 12 << 12
    source = torch.ones(size_bytes, dtype=torch.uint8, device=place)
    target = torch.zeros_like(source)
    rate = _rate(lambda: target.copy_(source), 2.0 * size_bytes, budget_s, place)
    return measured(rate, f"copy of {size_bytes >> 20} MiB, bytes read and bytes written counted")


def _rate(run: Callable[[], object], work: float, budget_s: float, place: torch.device) -> float:
    """Returns work per second: the median over windows, so that what else the machine does counts little."""
    repeats = max(1, round(_WINDOW_S / max(_best_s(run, place), 1e-7)))
    until_s = time.perf_counter() + budget_s
    rates = [work * repeats / _seconds(run, repeats, place)]
    while time.perf_counter() < until_s:
        rates.append(work * repeats / _seconds(run, repeats, place))
    return statistics.median(rates)


def _seconds(run: Callable[[], object], repeats: int, place: torch.device) -> float:
    _finish(place)
    started_s = time.perf_counter()
    for _ in range(repeats):
        run()
    _finish(place)
    return time.perf_counter() - started_s


def _finish(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def _available_bytes(place: torch.device) -> int:
    if place.type == "cuda" and not torch.cuda.get_device_properties(place).is_integrated:
        return int(torch.cuda.mem_get_info(place)[0])
    return int(psutil.virtual_memory().available)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
