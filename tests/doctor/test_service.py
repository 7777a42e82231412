"""What systemd 252 (Debian 12) said on a flashed board in each state, recorded with the commands that asked it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]
RECORDED = Path(__file__).parent.parent / "fixtures/systemd"
ENVIRONMENT = "opt/edgefed/venv/bin/python"


def answers(state: str, user: str) -> Callable[[Sequence[str]], str | None]:
    """Returns what answers as it was recorded, with another user for the service than this machine would have."""
    text = (RECORDED / f"{state}.txt").read_text().replace("User=edgefed\n", f"User={user}\n")
    said = dict(block.split("\n", 1) for block in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:])
    return lambda command: said[shlex.join(command)]


@pytest.fixture
def on_systemd(board: MakeBoard, tmp_path: Path) -> Callable[..., Board]:
    """Makes a board with systemd in a recorded state."""

    def make(state: str, *, user: str = "", without: str = "") -> Board:
        made = board(run=answers(state, user))
        for name in ("run/systemd/system/x", ENVIRONMENT, "etc/edgefed/agent.toml"):
            if name != without:
                (made.root / name).parent.mkdir(parents=True, exist_ok=True)
                (made.root / name).touch()
        return made

    return make


def told(examined: Examined, status: str) -> str:
    return " | ".join(f"{one.seen} → {one.remedy}" for one in examined.findings if one.status == status)


def test_a_machine_without_systemd(board: MakeBoard, look: Look) -> None:
    assert look(board(), "service").status == "ok"


def test_an_agent_that_runs(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd("running"), "service")
    assert "is active (running)" in told(examined, "ok")
    assert "has built the agent's environment" in told(examined, "ok")
    assert told(examined, "problem") == ""


def test_units_that_are_not_there(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd("no-units"), "service")
    assert [finding.status for finding in examined.findings] == ["note"]
    assert "there is no edgefed-agent.service" in told(examined, "note")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("ends-again-and-again", "started again 4 times, the last time with exit-code, status 4"),
        ("is-started-again", "started again 5 times"),
    ],
)
def test_an_agent_that_does_not_stay_up(on_systemd: Callable[..., Board], look: Look, state: str, said: str) -> None:
    examined = look(on_systemd(state), "service")
    assert f"does not stay up: {said}; it said: data: there is no file or directory" in told(examined, "problem")


def test_an_agent_that_somebody_stopped(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd("stopped"), "service")
    assert "does not run: it is inactive → systemctl start" in told(examined, "problem")
    assert "is disabled" in told(examined, "note")
    assert "has built the agent's environment" in told(examined, "ok")


def test_a_first_boot_that_is_at_it(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd("first-boot-builds", without=ENVIRONMENT), "service")
    assert "is building the agent's environment" in told(examined, "note")
    assert f"cannot be started: /{ENVIRONMENT} is not there" in told(examined, "problem")


def test_a_first_boot_that_fails(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd("first-boot-fails", without=ENVIRONMENT), "service")
    assert "tries again and again: ERROR: No matching distribution found for junk" in told(examined, "problem")


def test_a_first_boot_that_fails_leaves_an_older_environment(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd("first-boot-fails"), "service")
    assert "tries again and again: ERROR: No matching distribution found for junk" in told(examined, "note")


def test_what_an_earlier_first_boot_said_counts_no_more(on_systemd: Callable[..., Board], look: Look) -> None:
    made = on_systemd("first-boot-fails", without=ENVIRONMENT)
    journal = (
        "failed\nedgefed first boot: failed: what went wrong stands above\nStarted edgefed-firstboot.service - x.\n"
    )
    changed = Board(
        config=made.config,
        options=made.options,
        root=made.root,
        run=lambda command: journal if command[0] == "journalctl" else made.run(command),
    )
    assert "is building the agent's environment" in told(look(changed, "service"), "note")


def test_a_first_boot_that_nobody_started(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd("nothing-runs", without=ENVIRONMENT), "service")
    assert "the first boot is inactive, and has not built" in told(examined, "problem")


@pytest.mark.skipif(os.geteuid() != 0, reason="the files would not be root's")
def test_files_that_were_copied_by_root(on_systemd: Callable[..., Board], look: Look, tmp_path: Path) -> None:
    made = on_systemd("running", user="nobody")
    (tmp_path / "state").mkdir()
    tmp_path.chmod(0o700)
    said = [finding.seen for finding in look(made, "service").findings if finding.status == "problem"]
    whom = "nobody, as whom the service runs the agent, may not"
    names = ("read", "agent.toml"), ("read", "data.jsonl"), ("write", "state")
    assert said == [f"{whom} {what} {tmp_path / name}" for what, name in names]


def test_a_user_that_there_is_not(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd("running", user="no-such-user"), "service")
    assert "runs as no-such-user, and there is no such user" in told(examined, "problem")


def test_another_python_than_the_agents(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd("running"), "service")
    assert "→ /opt/edgefed/venv/bin/python -m edgefed doctor" in told(examined, "note")
