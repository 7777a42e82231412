"""What systemd says, as `systemctl show` and `journalctl --output=cat` write it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgefed.doctor.examination import Examined
from edgefed.doctor.findings import Board

MakeBoard = Callable[..., Board]
Look = Callable[[Board, str], Examined]

RUNNING = {
    "LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "active", "SubState": "running",
    "Result": "success", "ExecMainStatus": "0", "NRestarts": "0", "ConditionResult": "yes", "User": "",
    "ExecStart": f"{{ path={sys.executable} ; argv[]={sys.executable} -m edgefed.cli.agent_process ; status=0/0 }}",
}  # fmt: skip
DONE = {"LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "inactive", "Result": "success"}


def systemd(
    agent: dict[str, str], first_boot: dict[str, str], journal: Sequence[str] = ()
) -> Callable[..., str | None]:
    """Returns what runs `systemctl` and `journalctl` on a machine in that state."""
    units = {"edgefed-agent.service": agent, "edgefed-firstboot.service": first_boot}

    def run(command: Sequence[str]) -> str | None:
        if command[0] == "journalctl":
            return "\n".join(journal) + "\n"
        return "".join(f"{key}={value}\n" for key, value in units[command[2]].items())

    return run


@pytest.fixture
def on_systemd(board: MakeBoard, tmp_path: Path) -> Callable[..., Board]:
    def make(agent: dict[str, str], first_boot: dict[str, str] = DONE, journal: Sequence[str] = ()) -> Board:
        made = board(run=systemd(agent, first_boot, journal))
        (tmp_path / "root/run/systemd/system").mkdir(parents=True)
        return made

    return make


def test_a_machine_without_systemd(board: MakeBoard, look: Look) -> None:
    assert look(board(), "service").status == "ok"


def test_an_agent_that_runs(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd(RUNNING), "service")
    assert examined.status == "ok", examined
    assert "is active (running)" in examined.findings[1].seen


def test_a_unit_that_is_not_there(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd({"LoadState": "not-found"}), "service")
    assert examined.status == "note"


def test_an_agent_that_ends_again_and_again(on_systemd: Callable[..., Board], look: Look) -> None:
    agent = {**RUNNING, "ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"}
    journal = ["edgefed: data: there is no file or directory /var/lib/edgefed/data", "Failed with result 'exit-code'."]
    examined = look(on_systemd({**agent, "ExecMainStatus": "4"}, DONE, journal), "service")
    assert examined.status == "problem"
    assert "status 4; edgefed: data: there is no file" in examined.findings[1].seen


def test_an_agent_that_was_restarted_often(on_systemd: Callable[..., Board], look: Look) -> None:
    examined = look(on_systemd({**RUNNING, "NRestarts": "17"}), "service")
    assert examined.status == "note"
    assert "17 times" in examined.findings[2].seen


def test_an_agent_that_nobody_started(on_systemd: Callable[..., Board], look: Look) -> None:
    agent = {**RUNNING, "ActiveState": "inactive", "SubState": "dead", "UnitFileState": "disabled"}
    examined = look(on_systemd(agent), "service")
    assert [finding.status for finding in examined.findings] == ["ok", "problem", "note"]
    assert "systemctl start" in examined.findings[1].remedy
    assert "systemctl enable" in examined.findings[2].remedy


def test_a_first_boot_that_fails(on_systemd: Callable[..., Board], look: Look) -> None:
    agent = {**RUNNING, "ActiveState": "inactive", "SubState": "dead", "ConditionResult": "no"}
    boot = {**DONE, "ActiveState": "active"}
    journal = [
        "edgefed first boot: building /opt/edgefed/environments/0123 from 12 wheels",
        "ERROR: No matching distribution found for msgspec==0.20.0",
        "edgefed first boot: failed: what went wrong stands above; trying again in 20 s",
    ]
    examined = look(on_systemd(agent, boot, journal), "service")
    assert [finding.status for finding in examined.findings] == ["problem", "problem"]
    assert "No matching distribution found for msgspec" in examined.findings[0].seen


def test_a_first_boot_that_is_at_it(on_systemd: Callable[..., Board], look: Look) -> None:
    agent = {**RUNNING, "ActiveState": "inactive", "SubState": "dead", "ConditionResult": "no"}
    journal = ["edgefed first boot: building /opt/edgefed/environments/0123 from 12 wheels"]
    examined = look(on_systemd(agent, {**DONE, "ActiveState": "active"}, journal), "service")
    assert examined.findings[0].status == "note"
    assert "from 12 wheels" in examined.findings[0].seen


@pytest.mark.skipif(os.geteuid() != 0, reason="the files would not be root's")
def test_files_that_were_copied_by_root(on_systemd: Callable[..., Board], look: Look, tmp_path: Path) -> None:
    made = on_systemd({**RUNNING, "User": "nobody"})
    (tmp_path / "state").mkdir()
    tmp_path.chmod(0o700)
    said = [finding.seen for finding in look(made, "service").findings if finding.status == "problem"]
    whom = "nobody, as whom the service runs the agent, may not"
    names = ("read", "agent.toml"), ("read", "data.jsonl"), ("write", "state")
    assert said == [f"{whom} {what} {tmp_path / name}" for what, name in names]


def test_a_user_that_there_is_not(on_systemd: Callable[..., Board], look: Look) -> None:
    found = look(on_systemd({**RUNNING, "User": "no-such-user"}), "service").findings[-1]
    assert found.status == "problem"
    assert "there is no such user" in found.seen


def test_another_python_than_the_agents(on_systemd: Callable[..., Board], look: Look) -> None:
    agent = {
        **RUNNING,
        "ExecStart": "{ path=/opt/edgefed/venv/bin/python ; argv[]=/opt/edgefed/venv/bin/python -m x ; }",
    }
    found = look(on_systemd(agent), "service").findings[-1]
    assert found.status == "note"
    assert found.remedy.startswith("/opt/edgefed/venv/bin/python -m edgefed doctor")
