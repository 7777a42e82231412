"""The driver's own list of GPUs, and the words for why there is none to compute on."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.gpu import gpu_names, why_no_gpu


def put(root: Path, name: str, text: str = "") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def with_smi(name: str) -> str | None:
    return f"/usr/bin/{name}" if name == "nvidia-smi" else None


def without_smi(name: str) -> str | None:
    return None


def test_the_kernel_driver_lists_its_gpus(tmp_path: Path) -> None:
    put(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ: 5\n")
    put(tmp_path, "proc/driver/nvidia/gpus/0000:02:00.0/information", "Model: NVIDIA H100\n")
    assert gpu_names(tmp_path) == ["NVIDIA GeForce RTX 4090", "NVIDIA H100"]
    assert gpu_names(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("driver", "torch_cuda", "said", "which", "words"),
    [
        (None, None, "", without_smi, "there is no NVIDIA driver"),
        (None, "12.6", "no NVIDIA driver", with_smi, "nvidia-smi is installed, but no NVIDIA driver is loaded"),
        ("proc/driver/nvidia/version", None, "", with_smi, "this torch is built without CUDA"),
        ("dev/nvhost-gpu", None, "", without_smi, "this torch is built without CUDA"),
        ("proc/driver/nvidia/version", "13.0", "driver too old", with_smi, "finds no GPU (torch: driver too old)"),
    ],
)
def test_why_there_is_no_gpu_is_said_in_words(
    tmp_path: Path, driver: str | None, torch_cuda: str | None, said: str, which: object, words: str
) -> None:
    if driver:
        put(tmp_path, driver)
    assert words in why_no_gpu(torch_cuda=torch_cuda, said=said, root=tmp_path, which=which)  # type: ignore[arg-type]
