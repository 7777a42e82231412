from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]

SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
ZRAM = SWAPS + "/dev/zram0                              partition\t650876\t\t0\t\t5\n"
CARD = SWAPS + "/dev/mmcblk0p3                          partition\t102396\t\t0\t\t-2\n"
JETSON = {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0"}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def notes(examined: Examined) -> str:
    return " ".join(finding.seen for finding in examined.findings if finding.status == "note")


def test_what_this_machine_has(board: MakeBoard, look: Look) -> None:
    examined = look(board(), "memory")
    assert "MiB available of" in examined.findings[0].seen
    assert "no swap" in examined.findings[1].seen


def test_zram_where_the_gpu_shares_the_memory(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    met = board()
    tree(tmp_path / "root", {"proc/swaps": ZRAM, **JETSON})
    examined = look(met, "memory")
    assert "zram" in notes(examined)
    assert any("nvzramconfig" in finding.remedy for finding in examined.findings)


def test_zram_elsewhere_is_as_it_should_be(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    met = board()
    tree(tmp_path / "root", {"proc/swaps": ZRAM})
    assert "zram" not in notes(look(met, "memory"))


@pytest.mark.parametrize(("boot_partition", "told"), [(False, True), (True, False)])
def test_swap_on_an_sd_card_but_not_on_emmc(
    board: MakeBoard, look: Look, tmp_path: Path, boot_partition: bool, told: bool
) -> None:
    met = board()
    root = tree(tmp_path / "root", {"proc/swaps": CARD})
    if boot_partition:
        (root / "sys/class/block/mmcblk0boot0").mkdir(parents=True)
    assert ("SD card" in notes(look(met, "memory"))) is told


def test_earlier_kills_are_told(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    met = board()
    tree(tmp_path / "root", {"proc/vmstat": "nr_free_pages 1\noom_kill 3\n"})
    assert "3 processes" in notes(look(met, "memory"))


@pytest.mark.parametrize(("limit_mib", "status"), [(40, "problem"), (500, "note"), (4000, "ok")])
def test_a_control_group_that_leaves_little(
    board: MakeBoard, look: Look, tmp_path: Path, limit_mib: int, status: str
) -> None:
    met = board()
    group = "sys/fs/cgroup/agent/memory"
    limit = {f"{group}.max": f"{limit_mib << 20}\n", f"{group}.current": "0\n", f"{group}.stat": "inactive_file 0\n"}
    tree(tmp_path / "root", {"proc/self/cgroup": "0::/agent\n", **limit})
    first = look(met, "memory").findings[0]
    # This machine may itself have less than the largest of these limits.
    assert first.status == status or (status == "ok" and first.status == "note")
    assert "control group" in first.seen or status == "ok"
