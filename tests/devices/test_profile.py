from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec
import pytest

from edgefed.devices.profile import DeviceProfile, read_profile


def read(tmp_path: Path, root: Path) -> DeviceProfile:
    return read_profile(tmp_path, quantization="nf4", max_rank=8, root=root)


def put(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def test_this_machine_is_described_as_it_is(tmp_path: Path) -> None:
    profile = read(tmp_path, Path("/"))
    assert profile.cpu_count == len(os.sched_getaffinity(0))
    assert profile.architecture == platform.machine()
    assert 0 < profile.memory_available_bytes <= profile.memory_total_bytes
    assert profile.memory_total_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert profile.disk_free_bytes > 0
    assert (profile.quantization, profile.max_rank) == ("nf4", 8)
    assert msgspec.json.decode(msgspec.json.encode(profile), type=DeviceProfile) == profile


def test_what_cannot_be_read_is_null(tmp_path: Path) -> None:
    profile = read(tmp_path, tmp_path / "nothing")
    assert profile.model is None
    assert profile.cpu_model is None


@pytest.mark.parametrize(
    ("files", "model"),
    [
        (
            {"sys/firmware/devicetree/base/model": b"NVIDIA Jetson Orin Nano Developer Kit\0"},
            "NVIDIA Jetson Orin Nano Developer Kit",
        ),
        ({"sys/devices/virtual/dmi/id/product_name": b"ThinkStation P3\n"}, "ThinkStation P3"),
        (
            {
                "sys/firmware/devicetree/base/model": b"Raspberry Pi 5\0",
                "sys/devices/virtual/dmi/id/product_name": b"something\n",
            },
            "Raspberry Pi 5",
        ),
        ({"sys/devices/virtual/dmi/id/product_name": b"\n"}, None),
        ({"sys/firmware/devicetree/base/model": b"Board \xff\0"}, "Board �"),
    ],
)
def test_the_board_is_named_by_its_device_tree_or_firmware(
    tmp_path: Path, files: dict[str, bytes], model: str | None
) -> None:
    for name, content in files.items():
        put(tmp_path, name, content)
    assert read(tmp_path, tmp_path).model == model


@pytest.mark.parametrize(
    ("cpuinfo", "cpu_model"),
    [
        (
            b"processor\t: 0\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu\n",
            "Intel(R) Xeon(R)",
        ),
        (
            b"processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
            "Raspberry Pi 4 Model B Rev 1.4",
        ),
        (b"processor\t: 0\nCPU implementer\t: 0x41\n", None),
        (b"model name\t:\n", None),
    ],
)
def test_the_processor_is_named_where_proc_says_so(tmp_path: Path, cpuinfo: bytes, cpu_model: str | None) -> None:
    put(tmp_path, "proc/cpuinfo", cpuinfo)
    assert read(tmp_path, tmp_path).cpu_model == cpu_model


def test_a_flashed_board_says_so_at_birth(tmp_path: Path) -> None:
    assert read(tmp_path, tmp_path / "nothing").flashed is None
    put(tmp_path, "etc/edgefed/flash-manifest.json", b'{"edgefed": "0.9", "board": "a Pi", "files": {}, "links": {}}')
    profile = read(tmp_path, tmp_path)
    assert profile.flashed is not None
    assert (profile.flashed.edgefed_version, profile.flashed.board) == ("0.9", "a Pi")
    put(tmp_path, "etc/edgefed/flash-manifest.json", b"damaged")
    assert "is damaged" in read(tmp_path, tmp_path).why_null["flashed"]
