from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.doctor import python
from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]
SYSFS = Path(__file__).parent.parent / "fixtures/sysfs"


def test_this_environment(board: MakeBoard, look: Look) -> None:
    examined = look(board(), "python")
    assert examined.status != "problem"
    assert platform.python_version() in examined.findings[0].seen
    assert sys.executable in examined.findings[0].seen


def test_the_board_is_named(board: MakeBoard, look: Look) -> None:
    examined = look(board(root=SYSFS / "raspberry-pi-5"), "python")
    assert "Raspberry Pi 5" in examined.findings[0].seen


def test_the_release_of_a_jetson(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    met = board()
    release = tmp_path / "root/etc/nv_tegra_release"
    release.parent.mkdir()
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n# more\n")
    said = [finding.seen for finding in look(met, "python").findings]
    assert "Jetson Linux: R36 (release), REVISION: 4.3" in said


def test_packages_that_are_missing(board: MakeBoard, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["msgspec>=0.19", "no-such-package>=1", "tomli>=2; python_version < '3.11'", "torch>=2; extra == 'train'"]
    monkeypatch.setattr(python.importlib.metadata, "requires", lambda _package: wanted)
    found = look(board(), "python").findings[-1]
    assert found.status == "problem"
    assert found.seen.endswith("missing: no-such-package")
