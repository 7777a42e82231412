from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board
from edgefed.flashing.manifest import RECORD, WHEELHOUSE, FileRecord, Record

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]

CONFIG, KEY, WHEEL = "/etc/edgefed/agent.toml", "/etc/edgefed/tls/key.pem", f"{WHEELHOUSE}/edgefed-1-py3-none-any.whl"
LINK = "/etc/systemd/system/multi-user.target.wants/edgefed-agent.service"
MODES = {CONFIG: 0o640, KEY: 0o600, WHEEL: 0o644}


@pytest.fixture
def flashed(board: MakeBoard, tmp_path: Path) -> Board:
    """A board with what flashing writes, as it was written."""
    met = board()
    root = tmp_path / "root"
    for path, mode in MODES.items():
        file = root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
        file.chmod(mode)
    link = root / LINK[1:]
    link.parent.mkdir(parents=True)
    link.symlink_to("/etc/systemd/system/edgefed-agent.service")
    write_record(root)
    return met


def write_record(root: Path, *, complete: bool = True) -> None:
    files = {
        path: FileRecord(sha256=hashlib.sha256(path.encode()).hexdigest(), mode=f"{mode:04o}")
        for path, mode in MODES.items()
    }
    links = {LINK: "/etc/systemd/system/edgefed-agent.service"}
    record = Record(edgefed="0.1.0", board="a board", files=files, links=links, complete=complete)
    (root / RECORD[1:]).write_bytes(msgspec.json.encode(record))


def test_a_machine_that_nobody_flashed(board: MakeBoard, look: Look) -> None:
    assert look(board(), "flash").status == "ok"


def test_nothing_was_changed(flashed: Board, look: Look) -> None:
    examined = look(flashed, "flash")
    assert examined.status == "ok"
    assert "3 files are as they were written" in examined.findings[0].seen


def test_what_first_boot_takes_from_others_is_no_change(flashed: Board, look: Look) -> None:
    (flashed.root / KEY[1:]).chmod(0o400)
    assert look(flashed, "flash").status == "ok"


def test_changes_are_told_by_kind(flashed: Board, look: Look) -> None:
    (flashed.root / CONFIG[1:]).write_text("changed")
    (flashed.root / KEY[1:]).chmod(0o644)
    (flashed.root / WHEEL[1:]).unlink()
    (flashed.root / LINK[1:]).unlink()
    found = {finding.seen.partition(" since")[0]: finding for finding in look(flashed, "flash").findings}
    assert CONFIG in found["changed"].seen
    assert KEY in found["open to more users"].seen
    assert WHEEL in found["gone"].seen
    assert LINK in found["gone"].seen
    assert "first boot refuses" in found["gone"].remedy


def test_a_flashing_that_was_interrupted(flashed: Board, look: Look) -> None:
    write_record(flashed.root, complete=False)
    examined = look(flashed, "flash")
    assert examined.status == "problem"
    assert "--upgrade" in examined.findings[0].remedy


def test_a_damaged_record(flashed: Board, look: Look) -> None:
    (flashed.root / RECORD[1:]).write_text("{")
    assert "damaged" in look(flashed, "flash").findings[0].seen
