from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]
SYSFS = Path(__file__).parent.parent / "fixtures/sysfs"


@pytest.mark.parametrize(
    ("recorded", "said"), [("jetson-orin-nano", "VDD_IN"), ("jetson-thor", "INA238"), ("x86-rapl", "RAPL")]
)
def test_the_sensor_of_a_board(board: MakeBoard, look: Look, recorded: str, said: str) -> None:
    examined = look(board(root=SYSFS / recorded), "power")
    first = examined.findings[0]
    assert first.status == "ok"
    assert said in first.seen
    assert "energy is told by" in first.seen


def test_no_sensor_says_why_and_what_to_do(board: MakeBoard, look: Look) -> None:
    examined = look(board(), "power")
    assert examined.status == "note"
    assert examined.findings[0].seen.startswith("records tell no energy")
    assert examined.findings[0].remedy
