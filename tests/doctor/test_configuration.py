from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]


def test_a_good_one(board: MakeBoard, look: Look) -> None:
    examined = look(board(), "configuration")
    assert examined.status == "ok"
    assert "device board-07 of fleet test" in examined.findings[0].seen
    assert "3 examples" in examined.findings[1].seen


def test_a_mistake_is_told_as_the_agent_tells_it(board: MakeBoard, look: Look) -> None:
    examined = look(board('broker.prot = "5"'), "configuration")
    assert examined.status == "problem"
    assert "prot" in examined.findings[0].seen


def test_examples_that_are_not_there(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    met = board('data.validation = "held.jsonl"')
    examined = look(met, "configuration")
    assert examined.status == "problem"
    assert str(tmp_path / "held.jsonl") in examined.findings[2].seen


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_examples_that_cannot_be_read(board: MakeBoard, look: Look, tmp_path: Path, content: bytes) -> None:
    met = board()
    (tmp_path / "data.jsonl").write_bytes(content)
    examined = look(met, "configuration")
    assert examined.status == "note"
    assert "data.jsonl" in examined.findings[1].seen


def test_a_root_that_is_none(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    examined = look(board(root=tmp_path / "elsewhere"), "configuration")
    assert examined.status == "problem"
    assert f"neither proc nor sys in {tmp_path / 'elsewhere'}" in examined.findings[1].seen


def test_a_password_file(board: MakeBoard, look: Look, tmp_path: Path) -> None:
    met = board('broker.username = "me"\nbroker.password_file = "password"')
    assert "cannot be read" in look(met, "configuration").findings[-1].seen
    password = tmp_path / "password"
    password.write_text("hush-hush\n")
    password.chmod(0o644)
    found = look(met, "configuration").findings[-1]
    assert found.status == "problem"
    assert "0644" in found.seen
    assert "hush" not in found.seen
    password.chmod(0o600)
    assert look(met, "configuration").status == "ok"


def test_a_models_directory_that_is_not_there(board: MakeBoard, look: Look) -> None:
    examined = look(board('models = {"google/flan-t5-small" = "models/small"}'), "configuration")
    assert examined.status == "note"
    assert "models/small" in examined.findings[-1].seen
