"""`edgefed doctor`: lines for people, a document for programs, and an exit code for both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.cli import doctor
from edgefed.doctor.examination import CHECKS, Examined
from edgefed.doctor.findings import note

QUICK = ["configuration", "python", "memory", "disk", "enrollment", "certificate", "service", "flash"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "data.jsonl").write_text('{"dialogue": "hello", "summary": "hi"}\n')
    path = tmp_path / "agent.toml"
    path.write_text('device = "a"\nfleet = "test"\ndata.path = "data.jsonl"\nbroker.port = 1\n')
    return path


def only(names: list[str]) -> list[str]:
    return [argument for name in names for argument in ("--only", name)]


def test_nothing_stops_the_agent(edgefed: Callable[..., Any], config: Path) -> None:
    done = edgefed("doctor", config, *only(QUICK))
    assert done.code == 0, done
    assert "ok       configuration" in done.out
    assert "note     certificate" in done.out
    assert "→ on a network that others use" in done.out


def test_a_problem_is_told_by_the_exit_code(edgefed: Callable[..., Any], config: Path) -> None:
    done = edgefed("doctor", config, "--only", "broker", "--only", "disk")
    assert done.code == 17
    assert "problem  broker" in done.out
    assert done.err == "edgefed: something stops the agent: see broker\n"


def test_what_others_say_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    found = note("connected, on \x1b]0;host\x07", "look \x1b[2Jthere")
    doctor._write(Examined(check="broker", status="note", findings=(found,)))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"on \u001b]0;host\u0007" in shown
    assert r"look \u001b[2Jthere" in shown


def test_a_document_for_programs(edgefed: Callable[..., Any], config: Path) -> None:
    done = edgefed("doctor", config, "--json", *only(["configuration", "broker"]))
    assert done.code == 17
    document = json.loads(done.out)
    assert document["device"] == "a"
    assert [(check["check"], check["status"]) for check in document["checks"]] == [
        ("configuration", "ok"),
        ("broker", "problem"),
    ]
    assert set(document["checks"][1]["findings"][-1]) == {"status", "seen", "remedy"}


def test_no_configuration_at_all(edgefed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_ON_BOARDS", tmp_path / "none.toml")
    done = edgefed("doctor", "--json", *only(QUICK))
    assert done.code == 17
    assert "there is no such file" in json.loads(done.out)["checks"][0]["findings"][0]["seen"]


def test_the_boards_own_configuration_is_found(
    edgefed: Callable[..., Any], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(doctor, "_ON_BOARDS", config)
    assert f"{config}: device a" in edgefed("doctor", "--only", "configuration").out


def test_the_help_names_every_check(edgefed: Callable[..., Any]) -> None:
    words = edgefed("doctor", "--help").out.replace(",", " ").replace(".", " ").split()
    assert [check.name for check in CHECKS if check.name not in words] == []


def test_a_check_that_there_is_not(edgefed: Callable[..., Any], config: Path) -> None:
    done = edgefed("doctor", config, "--only", "weather")
    assert done.code == 3
    assert "there is no check 'weather'" in done.err
    assert all(check.name in done.err for check in CHECKS)


def test_long_lines_are_folded_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    found = note("a b c d e f g h " * 8, "i j k l m n o p " * 8)
    doctor._write(Examined(check="disk", status="note", findings=(found,)))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 4
    assert all(len(line) <= 90 for line in lines)
    assert all(line.startswith(" " * 25) for line in lines[1:])


def test_a_base_install_is_looked_over_without_torch(config: Path) -> None:
    light = [check.name for check in CHECKS if check.name not in ("torch", "bitsandbytes", "onnxruntime")]
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'transformers', 'bitsandbytes', 'safetensors'): sys.modules[name] = None\n"
        f"sys.argv = {['edgefed', 'doctor', str(config), *only(light)]!r}\n"
        "from edgefed.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 17, done.stderr  # nobody listens at port 1
    assert done.stderr.endswith("edgefed: something stops the agent: see broker\n")
