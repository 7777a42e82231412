"""The probe on this machine's CPU, and what it makes of torch's answers about GPUs that work, and that do not."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgefed.devices.compute import DATA_TYPES, LEFT_OUT
from edgefed.devices.gpu import GpuProfile
from edgefed.errors import ModelError
from edgefed.training import probe as module
from edgefed.training.probe import probe, read_gpu

pytestmark = pytest.mark.torch


def cuda(
    *,
    available: bool = True,
    total: int = 8 << 30,
    free: int = 1 << 30,
    says: Exception | None = None,
    **properties: Any,
) -> Any:
    """torch.cuda at the edge of a machine with one GPU."""
    known = {
        "name": "Orin",
        "major": 8,
        "minor": 7,
        "is_integrated": 1,
        "total_memory": total,
        "multi_processor_count": 8,
        **properties,
    }

    def init() -> None:
        if says is not None:
            raise says

    def mem_get_info(_: int) -> tuple[int, int]:
        init()
        return free, total

    return SimpleNamespace(
        is_available=lambda: available,
        init=init,
        get_device_properties=lambda _: SimpleNamespace(**known),
        mem_get_info=mem_get_info,
    )


def test_every_data_type_of_this_cpu_is_measured_or_says_why_not() -> None:
    steps: list[str] = []
    machine = probe("cpu", threads=1, report=lambda what, _step, _steps: steps.append(what))
    assert steps == [*DATA_TYPES, "memory bandwidth"]
    compute = machine.compute
    assert (compute.hardware, compute.threads) == ("cpu", 1)
    for name in ("fp32", "bf16", "int8", "nf4"):
        assert compute.flops_per_s[name].value is not None, compute.flops_per_s[name].reason  # type: ignore[index]
    assert compute.memory_bandwidth_bytes_per_s.value is not None
    assert compute.torch_version == str(torch.__version__)
    assert compute.best() is not None


def test_a_quick_probe_loads_no_bitsandbytes_and_says_what_it_left_out() -> None:
    machine = probe("cpu", threads=1, quick=True)
    assert machine.compute.flops_per_s["fp32"].value is not None
    assert {machine.compute.flops_per_s[name].reason for name in ("fp16", "int8", "nf4")} == {LEFT_OUT}


def test_without_bitsandbytes_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    figure = module._rate_of("nf4", None, torch.device("cpu"), 0.05)
    assert figure.value is None
    assert "pip install 'edgefed[train]'" in figure.reason


def test_a_kernel_that_fails_is_a_null_with_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("named symbol not found\n at a stack of frames")

    monkeypatch.setattr(module, "_product", fail)
    figure = module._rate_of("fp16", None, torch.device("cpu"), 0.05)
    assert figure.reason == "it does not run here: named symbol not found"


def test_a_layer_without_a_gradient_does_not_count_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes has had kernels that run, are fast, and lose the gradient."""
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", lambda _, x: x * 0.0)
    figure = module._rate_of("nf4", None, torch.device("cpu"), 0.05)
    assert figure.value is None
    assert "gradient is zero" in figure.reason


def test_a_gpu_is_described_as_the_runtime_does() -> None:
    gpu, reason = read_gpu(cuda(clock_rate=624750), "12.6")
    assert reason == ""
    assert gpu is not None
    assert (gpu.name, gpu.compute_capability, gpu.integrated, gpu.sm_count) == ("Orin", 8.7, True, 8)
    assert (gpu.memory_total_bytes, gpu.memory_free_bytes, gpu.clock_hz.value) == (8 << 30, 1 << 30, 624750000.0)


def test_a_clock_that_the_runtime_does_not_tell_is_null() -> None:
    gpu, _ = read_gpu(cuda(), "12.6")
    assert gpu is not None
    assert "does not tell the clock" in gpu.clock_hz.reason


def test_a_gpu_without_memory_is_no_gpu_and_says_what_to_do() -> None:
    gpu, reason = read_gpu(cuda(total=0, free=0), "12.6")
    assert gpu is None
    assert "'Orin' reports 0 bytes of memory" in reason
    assert "worker.device" in reason


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (
            cuda(says=RuntimeError("CUDA error: unknown error\nsecond line")),
            "does not answer: CUDA error: unknown error",
        ),
        (cuda(available=False, says=RuntimeError("Found no NVIDIA driver")), "no NVIDIA driver"),
    ],
)
def test_a_gpu_that_does_not_answer_is_told_in_words(broken: Any, words: str) -> None:
    gpu, reason = read_gpu(broken, "12.6")
    assert gpu is None
    assert words in reason
    assert "second line" not in reason


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_gpu", lambda: (None, "there is no NVIDIA driver on this machine"))
    with pytest.raises(ModelError, match="torch finds none: there is no NVIDIA driver"):
        probe("cuda", quick=True)


@pytest.mark.parametrize(("name", "least"), [("bf16", 8.0), ("int8", 7.5), ("nf4", 6.0)])
def test_data_types_that_a_gpu_is_too_old_for_are_not_tried(name: Any, least: float) -> None:
    old = GpuProfile(
        name="old",
        compute_capability=5.3,
        integrated=True,
        memory_total_bytes=4 << 30,
        memory_free_bytes=2 << 30,
        sm_count=1,
    )
    figure = module._rate_of(name, old, torch.device("cuda"), 0.05)
    assert f"needs compute capability {least}, and this GPU has 5.3" in figure.reason
