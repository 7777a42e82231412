from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from edgefed.devices.conditions import read_conditions
from edgefed.devices.gpu import gpu_names
from edgefed.devices.jetson import read_gpu_clock, read_l4t
from edgefed.devices.power.find import find_readers
from edgefed.devices.power_mode import read_power_mode
from edgefed.devices.profile import read_profile
from edgefed.devices.sensors import read_thermal
from tests.shared.power_reader_suite import FIXTURES, copy_of, recorded, without_privileges
from tools.capture_sysfs import FILES, capture, write_archive

PROJECT = Path(__file__).resolve().parents[2]
BOARDS = sorted(path.name for path in FIXTURES.iterdir())
SECRETS = {"3c:6a:9d:12:34:56", "3C-6A-9D-12-34-57", "10000000deadbeef", "GPU-5ec2e7"}


def unpack(archive: Path, to: Path) -> Path:
    with tarfile.open(archive) as members:
        for member in members:
            content = members.extractfile(member)
            assert content is not None
            path = to / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
    return to


def figures(root: Path) -> dict[str, Any]:
    found = find_readers(root, run=recorded(root), which="/usr/bin/{}".format)
    return {
        "power": [(one.name, one.watts(), one.joules(), one.rails_w()) for one in found.readers],
        "absent": found.absent,
        "thermal": read_thermal(root),
        "model": read_profile(root, quantization="none", max_rank=8, root=root).model,
        "mode": read_power_mode(root),
        "jetson": (read_l4t(root), read_gpu_clock(root)),
    }


@pytest.mark.parametrize("board", BOARDS)
def test_what_was_captured_gives_the_same_figures(board: str, tmp_path: Path) -> None:
    archive = tmp_path / "board.tar.gz"
    command = [sys.executable, "-m", "tools.capture_sysfs", archive, "--root", FIXTURES / board]
    done = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    root = unpack(archive, tmp_path / "unpacked")
    assert figures(root) == figures(FIXTURES / board)
    assert set(done.stdout.split()) | {"README.md"} == {
        path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("board", BOARDS)
def test_the_table_names_every_file_that_a_reader_opens(board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root, opened = FIXTURES / board, set()
    original: Callable[..., str] = Path.read_text

    def noting(path: Path, *args: Any, **kwargs: Any) -> str:
        if root in path.parents:
            opened.add(path.relative_to(root).as_posix())
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", noting)
    figures(root)
    read_conditions(root)
    gpu_names(root)
    assert len(opened) > 10
    network = {"proc/net/route"}  # who the neighbours are is nobody's business
    unnamed = {name for name in opened - network if not any(PurePosixPath(name).match(pattern) for pattern in FILES)}
    assert unnamed == set()


def test_nothing_that_identifies_the_machine_is_in_the_archive(tmp_path: Path) -> None:
    root = copy_of("hwmon-laptop", tmp_path / "laptop")
    mouse = root / "sys/class/power_supply/hid-3c:6a:9d:12:34:56-battery"
    for path, text in {
        mouse / "type": "Battery\n",
        mouse / "serial_number": "3c:6a:9d:12:34:56\n",
        root / "sys/class/hwmon/hwmon9/name": "hid_3C-6A-9D-12-34-57_battery\n",
        root / "proc/cpuinfo": "processor\t: 0\nSerial\t\t: 10000000deadbeef\nModel\t\t: A Board\n",
        root / "proc/device-tree/serial-number": "10000000deadbeef\0",
        root / "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t A GPU\nGPU UUID: \t GPU-5ec2e7\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_archive(capture(root, None), "about", tmp_path / "out.tar.gz")
    unpacked = unpack(tmp_path / "out.tar.gz", tmp_path / "unpacked")
    for path in unpacked.rglob("*"):
        told = path.as_posix() + (path.read_text() if path.is_file() else "")
        assert not any(secret in told for secret in SECRETS)
    assert (unpacked / "sys/class/power_supply/hid-00:00:00:00:00:00-battery/type").is_file()
    assert (unpacked / "sys/class/hwmon/hwmon9/name").read_text() == "hid_00:00:00:00:00:00_battery\n"
    assert "Model\t\t: A Board" in (unpacked / "proc/cpuinfo").read_text()
    assert gpu_names(unpacked) == ["A GPU"]


def test_a_locked_file_is_left_out_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = "sys/class/powercap/intel-rapl:0/energy_uj"
    (copy_of("x86-rapl", tmp_path) / locked).chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with without_privileges():
        taken = capture(Path(), None)
    assert taken.silent == {locked: "Permission denied"}
    assert locked not in taken.texts
    assert "sys/class/powercap/intel-rapl:1/energy_uj" in taken.texts


def test_a_raspberry_pi_is_asked_through_vcgencmd(tmp_path: Path) -> None:
    root = copy_of("raspberry-pi-5", tmp_path)
    for path in (root / "vcgencmd").iterdir():
        path.unlink()
    taken = capture(root, lambda command: "throttled=0x0\n" if command[1] == "get_throttled" else None)
    assert taken.texts["vcgencmd/get_throttled.txt"] == "throttled=0x0\n"
    assert taken.silent == {"vcgencmd/pmic_read_adc.txt": "vcgencmd is missing or failed"}


@pytest.mark.parametrize(("root", "words"), [("x86-rapl", "cannot write"), ("nowhere", "nothing under")])
def test_what_cannot_be_done_is_said(tmp_path: Path, root: str, words: str) -> None:
    archive = tmp_path / "out.tar.gz"
    archive.write_text("precious")
    command = [sys.executable, "-m", "tools.capture_sysfs", archive, "--root", FIXTURES / root]
    done = subprocess.run(command, cwd=PROJECT, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert words in done.stderr
    assert archive.read_text() == "precious"
