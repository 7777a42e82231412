from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgefed.devices.flashed import FLASH_RECORD, read_flashed
from edgefed.flashing.board import Board
from edgefed.flashing.changes import for_new_board
from edgefed.flashing.manifest import Installation, manifest


def put(root: Path, content: bytes) -> None:
    path = root / FLASH_RECORD.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_what_flashing_leaves_is_told(tmp_path: Path) -> None:
    board = Board(architecture="aarch64", python=(3, 11), system="Debian 12")
    changes = for_new_board(manifest(Installation(wheels=(), agent_toml=b""), board))
    for complete in (True, False):
        record = changes.record_file(complete=complete)
        assert isinstance(record.source, bytes)
        put(tmp_path, record.source)
        flashed, reason = read_flashed(tmp_path)
        assert flashed is not None
        assert flashed.manifest_sha256 == hashlib.sha256(record.source).hexdigest() == record.sha256
        assert (flashed.board, flashed.complete) == ("Debian 12, aarch64, Python 3.11", complete)
        assert (flashed.edgefed_version, reason) == (changes.record.edgefed, "")


def test_a_machine_that_was_never_flashed(tmp_path: Path) -> None:
    assert read_flashed(tmp_path) == (None, "")


@pytest.mark.parametrize(
    "content", [b"", b'{"edgefed": "0.1', b'{"edgefed": 1, "board": "b"}', b"[" * 100_000, b"\xff"]
)
def test_a_damaged_record_is_told_and_nothing_worse(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, content)
    flashed, reason = read_flashed(tmp_path)
    assert flashed is None
    assert "flash-manifest.json is damaged" in reason


def test_a_record_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / FLASH_RECORD.lstrip("/")).mkdir(parents=True)
    assert "cannot be read" in read_flashed(tmp_path)[1]
