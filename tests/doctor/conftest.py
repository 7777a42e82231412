from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.doctor.examination import CHECKS, Check, Examined, examine, meet_board
from edgefed.doctor.findings import Board

AGENT = """\
device = "{device}"
fleet = "test"
state = "state"
root = "{root}"
worker.device = "cpu"
data.path = "data.jsonl"
{more}
"""

MakeBoard = Callable[..., Board]


@pytest.fixture
def board(tmp_path: Path) -> MakeBoard:
    """Makes a board with an agent.toml, and a file system of its own below `root`."""

    def make(more: str = "", *, device: str = "board-07", root: Path = tmp_path / "root", **how: Any) -> Board:
        if not root.exists():
            (root / "proc").mkdir(parents=True)
        config = tmp_path / "agent.toml"
        config.write_text(AGENT.format(device=device, root=root, more=more))
        (tmp_path / "data.jsonl").write_text('{"dialogue": "hello", "summary": "hi"}\n' * 3)
        met = meet_board(config, kernel_patience_s=300)
        return dataclasses.replace(met, **{"run": lambda _command: None, **how})

    return make


@pytest.fixture
def look() -> Callable[[Board, str], Examined]:
    """Makes the check of a name."""
    checks: dict[str, Check] = {check.name: check for check in CHECKS}
    return lambda board, name: examine(board, checks[name])
