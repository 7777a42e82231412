"""The forms of the log: what is in them, and that nothing which others said gets out as more than text."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.logs import form_of, printable, start_logging
from tools.mosquitto import free_port

PATIENCE_S = 60


@given(st.text())
def test_what_is_printable_has_one_line_and_reads_back(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text


def entries(form: str, level: int = logging.DEBUG, **about: object) -> str:
    """Returns what a form makes of a message with a field."""
    stream = io.StringIO()
    start_logging(level, as_json=form == "json", stream=stream)
    logging.getLogger("edgefed.test").warning("device %(device)s said so", about)
    return stream.getvalue()


@given(st.text())
def test_a_line_of_json_says_everything_whatever_the_device_is_called(device: str) -> None:
    before = datetime.now(timezone.utc)
    line = entries("json", device=device, loss=float("nan"), of=Path("/a"), round=3, done=None)
    assert line[:-1].isprintable()
    entry = json.loads(line)
    assert entry.keys() == {"time", "level", "logger", "message", "fields"}
    assert entry["level"] == "WARNING"
    assert entry["logger"] == "edgefed.test"
    assert entry["message"] == f"device {device} said so"
    assert entry["fields"] == {"device": device, "loss": "nan", "of": "/a", "round": 3, "done": None}
    told = datetime.fromisoformat(entry["time"].replace("Z", "+00:00"))
    assert -1 < (told - before).total_seconds() < PATIENCE_S


def test_a_plain_entry_is_one_line_whatever_the_device_said() -> None:
    line = entries("plain", device="\x1b[2J\n2026-01-01 ERROR forged\x9b\u202e")
    assert line.endswith("edgefed.test: device \\u001b[2J\\n2026-01-01 ERROR forged\\u009b\\u202e said so\n")
    assert line.count("\n") == 1


def with_exception(form: str) -> str:
    stream = io.StringIO()
    start_logging(logging.INFO, as_json=form == "json", stream=stream)
    try:
        raise ValueError("bad\nERROR forged \x1b")
    except ValueError:
        logging.getLogger("edgefed.test").exception("no good")
    return stream.getvalue()


def test_what_happened_stands_below_or_beside() -> None:
    first, *below = with_exception("plain").splitlines()
    assert first.endswith("ERROR edgefed.test: no good")
    assert all(line.startswith("    ") for line in below)
    assert below[-1] == "    ERROR forged \\u001b"
    entry = json.loads(with_exception("json"))
    assert entry["exception"].splitlines()[0].strip().startswith("Traceback")
    assert "ERROR forged" in entry["exception"]


def journal(tmp_path: Path, code: str) -> list[str]:
    """Returns what a process writes whose stderr systemd reads."""
    log = tmp_path / "journal"
    with log.open("w") as stream:
        found = os.fstat(stream.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        program = f"import logging\nfrom edgefed.logs import start_logging\nstart_logging(logging.DEBUG)\n{code}"
        subprocess.run([sys.executable, "-c", program], stderr=stream, env=environment, check=True)
    return log.read_text().splitlines()


def test_the_journal_gets_pairs_and_priorities(tmp_path: Path) -> None:
    lines = journal(
        tmp_path,
        "log = logging.getLogger('edgefed.a')\n"
        "log.debug('one')\nlog.info('two %s', 'words')\nlog.warning('of %(device)s', {'device': 'd\\x1b \"1\"'})\n"
        "log.error('e')\nlog.critical('c')\nlog.log(25, 'between')\n",
    )
    assert lines == [
        "<7>message=one logger=edgefed.a",
        '<6>message="two words" logger=edgefed.a',
        '<4>message="of d\\u001b \\"1\\"" logger=edgefed.a device="d\\u001b \\"1\\""',
        "<3>message=e logger=edgefed.a",
        "<2>message=c logger=edgefed.a",
        "<6>message=between logger=edgefed.a",
    ]


def test_a_child_of_a_service_with_an_output_of_its_own_writes_for_people(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        found = os.fstat(stream.fileno())
        assert form_of(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}) == "journal"
        assert form_of(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"}) == "plain"
        assert form_of(stream, {}) == "plain"
    assert form_of(io.StringIO(), {"JOURNAL_STREAM": "1:2"}) == "plain"
    assert form_of(stream, {"JOURNAL_STREAM": "1:2"}) == "plain", "it is closed"


@pytest.fixture
def agent_toml(tmp_path: Path) -> Path:
    """An agent whose broker is not there."""
    (tmp_path / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
    path = tmp_path / "agent.toml"
    path.write_text(f'device = "d"\nfleet = "f"\n[broker]\nport = {free_port()}\n[data]\npath = "data.jsonl"\n')
    return path


AGENT = ("-m", "edgefed", "-v", "agent", "--require-broker", "-c")
PROCESS = ("-m", "edgefed.cli.agent_process")


@pytest.mark.parametrize("command", [(*AGENT, "{}", "--log-json"), (*PROCESS, "{}", "--require-broker", "--log-json")])
def test_an_agent_logs_json_to_its_last_word(command: tuple[str, ...], agent_toml: Path) -> None:
    arguments = [part.format(agent_toml) for part in command]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    last = json.loads(done.stderr.splitlines()[-1])
    assert [json.loads(line)["level"] for line in done.stderr.splitlines()][-1] == "ERROR"
    assert last["fields"]["exit_code"] == done.returncode == 6
    assert "broker" in last["message"]


@pytest.mark.parametrize("command", ["agent", "aggregator"])
def test_a_wrong_file_is_told_in_json_too(command: str, tmp_path: Path) -> None:
    arguments = ["-m", "edgefed", command, "--log-json", "-c", str(tmp_path / "none.toml")]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    entry = json.loads(done.stderr)
    assert entry["fields"]["exit_code"] == done.returncode == 3
    assert "none.toml: there is no such file" in entry["message"]


def test_an_agent_of_systemd_logs_pairs(agent_toml: Path, tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as stream:
        found = os.fstat(stream.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        command: list[Any] = [sys.executable, *PROCESS, agent_toml, "--require-broker"]
        subprocess.run(command, stderr=stream, env=environment, timeout=PATIENCE_S, check=False)
    lines = (tmp_path / "journal").read_text().splitlines()
    assert lines[-1].startswith('<3>message="')
    assert lines[-1].endswith(" exit_code=6")


def test_without_a_journal_it_says_so_in_words(agent_toml: Path) -> None:
    command: list[Any] = [sys.executable, *PROCESS, agent_toml, "--require-broker"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stderr.splitlines()[-1].startswith("edgefed: ")
