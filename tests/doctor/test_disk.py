from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "state"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=16", "none", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_room_and_the_time_of_a_sync(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    examined = look(board(), "disk")
    said = " ".join(finding.seen for finding in examined.findings)
    assert "is not there yet" in said
    assert "MiB free" in said
    assert "fsync" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.toml", "data.jsonl", "root"], "nothing is left"


def test_a_full_disk(board: MakeBoard, look: Look, small_disk: Path) -> None:
    (small_disk / "much").write_bytes(bytes((4 << 20) - 8192))
    examined = look(board(), "disk")
    assert examined.status == "problem"
    assert "No space left on device" in examined.findings[-1].seen
    assert [path.name for path in small_disk.iterdir()] == ["much"]


def test_a_small_disk_is_a_note(board: MakeBoard, look: Look, small_disk: Path) -> None:
    examined = look(board(), "disk")
    assert examined.status == "note"
    assert "4 MiB free" in examined.findings[0].seen


def test_no_more_files(board: MakeBoard, look: Look, small_disk: Path) -> None:
    for number in range(os.statvfs(small_disk).f_favail):
        (small_disk / str(number)).touch()
    examined = look(board(), "disk")
    assert examined.status == "problem"
    assert "inodes" in examined.findings[-1].seen


def test_a_disk_that_became_read_only(board: MakeBoard, look: Look, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    examined = look(board(), "disk")
    assert examined.status == "problem"
    assert "read-only" in examined.findings[0].seen


def test_a_file_in_the_way(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    examined = look(board(), "disk")
    assert examined.status == "problem"
    assert "is no directory" in examined.findings[0].seen


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_of_somebody_else(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o555)
    examined = look(board(), "disk")
    assert examined.status == "problem"
    assert "may not be written" in examined.findings[-1].seen
