"""Reading sheets and finding boards: a wrong file is refused in words, and one machine is one board."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgefed
from edgefed.devices.board_files import boards, find_board, load_board, match_board, profiles_directory
from edgefed.errors import ConfigError

GIB = 1 << 30
GOOD = profiles_directory() / "jetson-orin-nano-8gb.toml"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / GOOD.name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("memory_bytes =", "memory_gb =", r"figures\.memory_gb is not a known key; did you mean memory_bytes\?"),
        ("tdp_w =", "tdp_mw =", r"figures\.tdp_mw is not a known key; did you mean tdp_w\?"),
        ("sm_count = 8\n", "sms = 8\n", r"power_mode\[0\]\.sms is not a known key"),
        ("budget_w = 15", "budget_w = -15", r"power_mode\[0\]\.budget_w: expected float > 0\.0 \(found -15\)"),
        ("value = 68_000_000_000", "value = 0", r"figures\.bandwidth_bytes_per_s: the value is 0; allowed is a number"),
        ("value = 68_000_000_000", "value = nan", r"figures\.bandwidth_bytes_per_s: the value is nan"),
        ("value = 68_000_000_000", 'value = "68 GB/s"', r"bandwidth_bytes_per_s\.value: .*found '68 GB/s'"),
        ('status = "verified", source = "S3"', 'status = "verified"', "a verified figure needs the source"),
        ('status = "verified", source = "S3"', 'status = "rumour"', r"status: invalid enum value 'rumour'"),
        ('source = "S3"', 'source = "S99"', r"bandwidth_bytes_per_s cites S99, which \[sources\] does not explain"),
        ("[sources]", '[sources]\nS98 = "hearsay"', r"\[sources\] explains S98, which nothing cites"),
        ("sm_count * gpu_clock_max_hz * 256", "sm_count * 256", r"fp32_flops_per_s is 1.28e\+12, and its formula"),
        ("gpu_clock_max_hz * 256", "clock * 256", r"fp32_flops_per_s: it uses clock, which this file does not give"),
        ("dense = true", "dense = false", "only dense peaks are allowed"),
        ('accumulate = "fp32"', 'accumulate = "fp16"', r"accumulate: invalid enum value 'fp16'"),
        ("gpu_clock_hz = 408_000_000", "gpu_clock_hz = 4e9", "power mode 7W has a gpu_clock_hz of 4e[+]09, more than"),
        ("budget_w = 7\n", "budget_w = 7\ndefault = true\n", "two power modes are the default"),
        ('name = "7W"', 'name = "MODE_15W"', "two power modes have the same name"),
        ('gpu = "Orin"\n', "", "a board with a GPU gives gpu"),
        ("gpu_name = '^Orin'", "gpu_name = '('", r"match: '\(' is no regular expression"),
        ("int8_ops_per_s =", "# int8_ops_per_s =", "int8 is given in peaks as int8_ops_per_s, or else in absent"),
        ('id = "jetson-orin-nano-8gb"', 'id = "another"', "allowed is the name of the file, 'jetson-orin-nano-8gb'"),
        ("memory_bytes = {", "memory_bytes = {{", "is not valid TOML"),
        ("bandwidth_bytes_per_s =", "# bandwidth =", "figures: object missing required field bandwidth_bytes_per_s"),
    ],
)
def test_a_wrong_sheet_is_refused_with_file_and_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = GOOD.read_text()
    assert old in text
    path = written(tmp_path, text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=said) as refused:
        load_board(path)
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize("place", ["edgefed/device_profiles", "device_profiles", None])
def test_the_sheets_are_found_where_they_were_installed(tmp_path: Path, place: str | None) -> None:
    """As the wheel lays them out, as a source checkout does, and not at all."""
    shutil.copytree(
        Path(edgefed.__file__).parent, tmp_path / "edgefed", ignore=shutil.ignore_patterns("assets", "*.pyc")
    )
    if place is not None:
        shutil.copytree(profiles_directory(), tmp_path / place)
    code = (
        "from edgefed.devices.board_files import boards, profiles_directory; print(len(boards()), profiles_directory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
    )
    if place is None:
        assert "device_profiles) are missing: install edgefed again" in done.stderr
    else:
        assert done.stdout.split() == [str(len(boards())), str(tmp_path / place)], done.stderr


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_board(tmp_path / "none.toml")
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "\xe9"')
    with pytest.raises(ConfigError, match="is not UTF-8 text: byte 8"):
        load_board(path)


def test_an_unknown_board_is_told_the_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"no board 'orin-nano-8gb'; did you mean jetson-orin-nano-8gb"):
        find_board("orin-nano-8gb")
    with pytest.raises(ConfigError, match=r"no board '\.\./secret'; `edgefed boards` lists all"):
        find_board("../secret")


MACHINES = [
    ("NVIDIA Jetson Nano Developer Kit", None, 3.9, None, "jetson-nano-4gb"),
    ("quill", "NVIDIA Tegra X2", 7.7, "MAXN", "jetson-tx2-8gb"),
    ("NVIDIA Jetson Xavier NX Developer Kit", "Xavier", 6.7, "MODE_15W_6CORE", "jetson-xavier-nx-8gb"),
    ("NVIDIA Jetson Xavier NX Developer Kit", "Xavier", 14.5, None, "jetson-xavier-nx-16gb"),
    ("Jetson-AGX", "Xavier", 30.5, None, "jetson-agx-xavier-32gb"),
    ("NVIDIA Jetson Orin Nano Developer Kit", "Orin", 7.3, "15W", "jetson-orin-nano-8gb"),
    ("NVIDIA Jetson Orin Nano Developer Kit", "Orin", 7.3, "7W", "jetson-orin-nano-8gb"),
    ("NVIDIA Jetson Orin Nano Developer Kit", "Orin", 7.3, "MAXN_SUPER", "jetson-orin-nano-8gb-super"),
    (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "Orin",
        7.4,
        "15W",
        "jetson-orin-nano-8gb-super",
    ),
    ("NVIDIA Jetson Orin Nano Developer Kit", "Orin", 3.6, "7W_AI", "jetson-orin-nano-4gb"),
    ("NVIDIA Jetson Orin Nano Developer Kit", "Orin", 3.6, "25W", "jetson-orin-nano-4gb-super"),
    ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "Orin", 15.3, "25W", "jetson-orin-nx-16gb"),
    ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "Orin", 15.3, "40W", "jetson-orin-nx-16gb-super"),
    ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "Orin", 7.3, "20W", "jetson-orin-nx-8gb"),
    (
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super",
        "Orin",
        7.3,
        "MAXN_SUPER",
        "jetson-orin-nx-8gb-super",
    ),
    ("NVIDIA Jetson AGX Orin Developer Kit", "Orin", 29.8, "MODE_30W", "jetson-agx-orin-32gb"),
    ("NVIDIA Jetson AGX Orin Developer Kit", "Orin", 61.4, "MAXN", "jetson-agx-orin-64gb"),
    ("NVIDIA Jetson AGX Thor Developer Kit", "NVIDIA Thor", 122.8, "120W", "jetson-agx-thor-t5000"),
    ("Raspberry Pi 5 Model B Rev 1.0", None, 7.9, None, "raspberry-pi-5-8gb"),
    ("Raspberry Pi 5 Model B Rev 1.1", None, 15.8, None, "raspberry-pi-5-16gb"),
    ("MS-7C37", "NVIDIA GeForce RTX 3060", 11.8, None, "rtx-3060-12gb"),
    (None, "NVIDIA GeForce RTX 4060", 7.8, None, "rtx-4060"),
    ("ROG Zephyrus", "NVIDIA GeForce RTX 4060 Laptop GPU", 7.8, None, "rtx-4060-laptop"),
    (None, "NVIDIA GeForce RTX 4090", 23.6, None, "rtx-4090"),
    (None, "NVIDIA GeForce RTX 5090", 31.4, None, "rtx-5090"),
    (None, "NVIDIA A100-SXM4-40GB", 39.4, None, "a100-sxm-40gb"),
    (None, "NVIDIA A100-SXM4-80GB", 79.2, None, "a100-sxm-80gb"),
    (None, "NVIDIA H100 80GB HBM3", 79.2, None, "h100-sxm"),
    (None, "NVIDIA H200", 139.8, None, "h200-sxm"),
]


@pytest.mark.parametrize(("model", "gpu", "memory_gib", "mode", "board_id"), MACHINES)
def test_a_machine_is_one_board(
    model: str | None, gpu: str | None, memory_gib: float, mode: str | None, board_id: str
) -> None:
    found = match_board(device_tree_model=model, gpu_name=gpu, memory_bytes=int(memory_gib * GIB), power_mode=mode)
    assert found is not None
    assert found.id == board_id


def test_every_board_has_a_machine_in_the_table() -> None:
    assert {machine[-1] for machine in MACHINES} == {board.id for board in boards()}


@pytest.mark.parametrize(
    ("model", "gpu", "memory_gib"),
    [
        (None, None, 62.0),
        ("Standard PC (Q35 + ICH9, 2009)", None, 62.0),
        ("Raspberry Pi 5 Model B Rev 1.0", None, 3.9),
        ("Raspberry Pi 4 Model B Rev 1.4", None, 7.8),
        (None, "NVIDIA GeForce RTX 3060", 8.0),
        (None, "NVIDIA GeForce RTX 3060 Laptop GPU", 6.0),
        (None, "NVIDIA GeForce RTX 4060 Ti", 7.8),
        (None, "NVIDIA GeForce RTX 4090 D", 23.6),
        (None, "NVIDIA H100 PCIe", 79.2),
        (None, "NVIDIA A100 80GB PCIe", 79.2),
        ("A carrier of my own", "Orin", 7.3),  # an Orin Nano or an Orin NX: nothing tells
    ],
)
def test_what_is_not_known_is_no_board(model: str | None, gpu: str | None, memory_gib: float) -> None:
    assert match_board(device_tree_model=model, gpu_name=gpu, memory_bytes=int(memory_gib * GIB)) is None


def test_without_a_device_tree_the_gpu_and_its_memory_may_tell() -> None:
    found = match_board(gpu_name="Orin", memory_bytes=int(61.4 * GIB))
    assert found is not None
    assert found.id == "jetson-agx-orin-64gb"
