"""`edgefed fleet token | tokens | withdraw | admit` and `edgefed agent --enroll`: what can be seen without a broker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.security.tokens import read_token

Run = Callable[..., Any]
AGENT = """\
device = "board-07"
fleet = "kitchen"
[data]
path = "data.jsonl"
[broker]
host = "127.0.0.1"
port = 1
"""


@pytest.fixture
def kitchen(edgefed: Run, tmp_path: Path) -> Path:
    assert edgefed("fleet", "init", tmp_path / "kitchen", "--broker-host", "127.0.0.1").code == 0
    return tmp_path / "kitchen"


def test_a_token_is_written_and_never_shown(edgefed: Run, kitchen: Path, tmp_path: Path) -> None:
    file = tmp_path / "t"
    done = edgefed("-vv", "fleet", "token", "board-*", "-f", kitchen, "-o", file, "--expires", "7d")
    assert done.code == 0, done.err
    assert f"wrote {file}: token {read_token(file).id}, for board-*, until 20" in done.out
    assert "the broker has to learn of the claim" in done.err
    assert json.loads(file.read_text())["secret"] not in done.out + done.err
    assert read_token(file).device == "board-*"
    done = edgefed("fleet", "token", "oven", "-f", kitchen, "-o", tmp_path / "u")
    assert (done.code, done.err) == (0, "")
    assert "claim:field" in edgefed("fleet", "list", "-f", kitchen).out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("Board",), "neither a device id nor a pattern"),
        (("board", "--expires", "soon"), "--expires is 'soon'; it must be a duration"),
        (("board", "--expires", "400d"), "a token lasts a year at most"),
        (("board", "--claim", "A B"), "claim name 'A B' is not usable"),
        (("board", "-f", "none"), "none holds no fleet"),
    ],
)
def test_tokens_that_are_not_made(
    edgefed: Run, kitchen: Path, tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    done = edgefed("fleet", "token", "-f", kitchen, "-o", tmp_path / "t", *arguments)
    assert (done.code, problem in done.err) == (3, True), done.err
    assert not (tmp_path / "t").exists()
    assert not (kitchen / "ca" / "tokens").exists()


def test_a_place_that_cannot_be_written_leaves_no_token_on_record(edgefed: Run, kitchen: Path, tmp_path: Path) -> None:
    done = edgefed("fleet", "token", "board", "-f", kitchen, "-o", tmp_path / "none" / "t")
    assert (done.code, "cannot be used" in done.err) == (3, True)
    assert list((kitchen / "ca" / "tokens").iterdir()) == []


def test_admit_finds_the_broker_in_its_certificate(edgefed: Run, kitchen: Path) -> None:
    done = edgefed("fleet", "admit", "-f", kitchen, "--port", 1)
    assert (done.code, "127.0.0.1:1" in done.err) == (6, True), done.err
    assert edgefed("fleet", "admit", "-f", kitchen, "--allow", "A").code == 3
    (kitchen / "aggregator" / "key.pem").unlink()
    done = edgefed("fleet", "admit", "-f", kitchen)
    assert (done.code, "key.pem" in done.err) == (3, True)


def test_an_agent_has_to_say_where_its_files_go(edgefed: Run, kitchen: Path, tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(AGENT)
    done = edgefed("agent", "--config", tmp_path / "agent.toml", "--enroll", tmp_path / "t")
    assert (done.code, "name them in agent.toml" in done.err) == (3, True)
    files = 'tls_ca = "s/ca.pem"\ntls_certificate = "s/certificate.pem"\ntls_key = "s/key.pem"\n'
    (tmp_path / "agent.toml").write_text(AGENT + files)
    done = edgefed("agent", "--config", tmp_path / "agent.toml", "--enroll", tmp_path / "t")
    assert (done.code, "cannot be read: No such file" in done.err) == (3, True)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("said", "code"), [(b"y\n", 0), (b"Yes", 0), (b"n\n", 1), (b"\n", 1), (b"", 3)])
def test_a_question_and_its_answer(said: bytes, code: int) -> None:
    program = (
        "import asyncio, sys\nfrom edgefed.cli.asking import yes_or_no\nfrom edgefed.errors import ConfigError\n"
        "try:\n    sys.exit(0 if asyncio.run(yes_or_no('well? ')) else 1)\nexcept ConfigError as e:\n    sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=said, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (code, b"well? ")


def test_a_question_that_nobody_answers_does_not_keep_the_program() -> None:
    program = (
        "import asyncio\nfrom edgefed.cli.asking import yes_or_no\n"
        "try:\n    asyncio.run(asyncio.wait_for(yes_or_no('well? '), 0.2))\n"
        "except asyncio.TimeoutError:\n    print('left')"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"left\n"
        assert process.wait(60) == 0


def test_tokens_are_listed_and_one_is_withdrawn(edgefed: Run, kitchen: Path, tmp_path: Path) -> None:
    assert edgefed("fleet", "tokens", "-f", kitchen, "--json").out == '{\n  "fleet": "kitchen",\n  "tokens": []\n}\n'
    for name, span in (("board-*", "1h"), ("oven", "2d")):
        assert edgefed("fleet", "token", name, "-f", kitchen, "-o", tmp_path / name, "--expires", span).code == 0
    first, second = read_token(tmp_path / "board-*"), read_token(tmp_path / "oven")
    header, *rows = edgefed("fleet", "tokens", "-f", kitchen).out.splitlines()
    assert header.split("\t")[:4] == ["token", "for", "claim", "state"]
    assert [row.split("\t")[:4] for row in rows] == [
        [first.id, "board-*", "field", "open"],
        [second.id, "oven", "field", "open"],
    ]
    done = edgefed("fleet", "withdraw", first.id[:8], "-f", kitchen)
    assert (done.code, done.out) == (0, f"withdrew token {first.id}, which was for board-*\n"), done.err
    assert len(edgefed("fleet", "tokens", "-f", kitchen).out.splitlines()) == 2
    assert "\twithdrawn\t" in edgefed("fleet", "tokens", "-f", kitchen, "--all").out
    listed = edgefed("fleet", "tokens", "-f", kitchen, "--json").out
    withdrawn, still_open = json.loads(listed)["tokens"]
    assert (withdrawn["state"], still_open["state"], still_open["withdrawn"]) == ("withdrawn", "open", None)
    assert withdrawn["withdrawn"] < withdrawn["expires"]
    for secret in (first.secret.hex(), second.secret.hex()):
        assert secret not in listed


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("4f", "'4f' is no token's id"),
        ("*", "is no token's id"),
        ("00000000000000000000000000000000", "has given out no token 0000"),
    ],
)
def test_a_token_that_cannot_be_withdrawn(edgefed: Run, kitchen: Path, name: str, problem: str) -> None:
    done = edgefed("fleet", "withdraw", name, "-f", kitchen)
    assert (done.code, problem in done.err) == (3, True), done.err
