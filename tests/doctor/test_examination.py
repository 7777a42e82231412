from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.doctor.examination import CHECKS, Check, Examined, choose_checks, examine, meet_board
from edgefed.doctor.findings import Board, Findings, ok
from edgefed.errors import ConfigError

Look = Callable[[Board, str], Examined]


def test_checks_are_chosen_by_name_and_keep_their_order() -> None:
    assert [check.name for check in choose_checks(["clock", "disk"], [])] == ["disk", "clock"]
    assert len(choose_checks([], ["torch"])) == len(CHECKS) - 1


@pytest.mark.parametrize(("only", "skip"), [(["klock"], []), ([], ["klock"]), (["clock"], ["clock"])])
def test_a_choice_that_makes_no_sense(only: list[str], skip: list[str]) -> None:
    with pytest.raises(ConfigError, match="check"):
        choose_checks(only, skip)


def test_without_a_configuration_what_needs_none_is_still_looked_at(tmp_path: Path) -> None:
    board = meet_board(tmp_path / "agent.toml", kernel_patience_s=60)
    found = {name: examine(board, check) for name, check in ((check.name, check) for check in CHECKS[:8])}
    assert found["configuration"].status == "problem"
    assert "there is no such file" in found["configuration"].findings[0].seen
    for name in ("disk", "enrollment", "certificate", "broker"):
        assert [finding.status for finding in found[name].findings] == ["note"]
    assert found["python"].findings
    assert found["memory"].findings


def test_what_the_machine_does_not_let_be_seen_ends_one_check_only(board: Callable[..., Board]) -> None:
    def look(_board: Board) -> Findings:
        yield ok("seen before")
        raise PermissionError(13, "Permission denied", "/proc/secret")

    examined = examine(board(), Check("secret", look))
    assert [finding.status for finding in examined.findings] == ["ok", "note"]
    assert "/proc/secret" in examined.findings[1].seen
    assert examined.status == "note"
