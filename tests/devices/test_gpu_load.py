from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.devices.gpu_load import find_gpu_load, read_gpu_percent


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "node",
    [
        "sys/devices/gpu.0",
        "sys/devices/platform/57000000.gpu",
        "sys/devices/17000000.gv11b",
        "sys/devices/platform/17000000.ga10b",
        "sys/devices/platform/17000000.gpu",
        "sys/devices/platform/bus@0/17000000.gpu",
    ],
)
def test_the_load_is_found_wherever_the_kernel_has_the_gpu(tmp_path: Path, node: str) -> None:
    path = put(tmp_path / node / "load", "537\n")
    assert find_gpu_load(tmp_path) == path
    assert read_gpu_percent(path) == 53.7


@pytest.mark.parametrize("text", ["", "busy\n", "-1\n", "1001\n"])
def test_a_file_that_tells_no_load_is_none(tmp_path: Path, text: str) -> None:
    path = put(tmp_path / "sys/devices/platform/gpu.0/load", text)
    assert read_gpu_percent(path) is None
    assert find_gpu_load(tmp_path) is None


def test_most_machines_have_none(tmp_path: Path) -> None:
    assert find_gpu_load(tmp_path) is None
    assert read_gpu_percent(tmp_path / "load") is None
