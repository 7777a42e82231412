"""A board that was flashed with a claim token, run by what was flashed: from its first start to a device of its fleet.

Its root is a directory here, so the paths that the unit and agent.toml name are led there; the rest is as on a board.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import Identity
from tests.flashing.small_boards import Rootfs
from tests.security.secured import NAME, PATIENCE_S, Secured, now

pytestmark = pytest.mark.broker
BOARD = "board-07"


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    arena = Secured(tmp_path / "arena")
    arena.enroll(Identity("claim", "field"))
    arena.enroll(Identity("observer", "desk"))
    with arena.running():
        yield arena


def edgefed(*arguments: object) -> str:
    command = [sys.executable, "-m", "edgefed", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def running(log: Path, *command: object, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env={**os.environ, **environment})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object], *logs: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "\n".join(log.read_text() for log in logs if log.exists())
        time.sleep(0.05)


def start_command(root: Path) -> list[str]:
    """Returns the ExecStart of the unit that was flashed, with this Python, and led to the board's root."""
    unit = (root / "etc/systemd/system/edgefed-agent.service").read_text()
    (line,) = re.findall(r"(?m)^ExecStart=(.*)$", unit)
    python, *arguments = shlex.split(line)
    assert python == "/opt/edgefed/venv/bin/python"
    return [sys.executable, *(argument.replace("/etc/", f"{root}/etc/") for argument in arguments)]


def flash(secured: Secured, root: Path, wheels: Path, token: Path) -> None:
    edgefed("fleet", "token", "board-*", "--fleet", secured.fleet.path, "--output", token)
    options = ["--device", BOARD, "--fleet", NAME, "--broker", f"127.0.0.1:{secured.port}", "--signed"]
    edgefed("flash", "rootfs", root, "--wheelhouse", wheels, *options, "--token", token)
    (root / "var/lib/edgefed/data").mkdir(parents=True)  # as tmpfiles does
    config = root / "etc/edgefed/agent.toml"
    config.write_text(config.read_text().replace("/var/lib/", f"{root}/var/lib/"))


def status(secured: Secured) -> dict[str, Any]:
    looking = ["--host", "127.0.0.1", "--port", secured.port, "--fleet", NAME, "--wait-s", 0.3, "--json"]
    document = json.loads(edgefed("status", *looking, "--identity", secured.fleet.place(Identity("observer", "desk"))))
    devices: dict[str, Any] = document["devices"]
    return devices


def test_a_flashed_token_makes_the_board_a_device_once(
    secured: Secured, rootfs: Rootfs, wheelhouse: Path, tmp_path: Path
) -> None:
    root = rootfs()
    flash(secured, root, wheelhouse, tmp_path / "board.token")
    claim, certificate = root / "etc/edgefed/claim/token", root / "var/lib/edgefed/tls/certificate.pem"
    log, admit_log = tmp_path / "agent.log", tmp_path / "admit.log"
    with running(log, *start_command(root)):
        wait_for(lambda: "connected to the broker" in log.read_text(), log)
    key = (root / "var/lib/edgefed/tls/key.pem").read_bytes()
    assert (claim.exists(), certificate.exists()) == (True, False), "nobody has admitted it before its power went"

    tell = (
        f"{sys.executable} -m edgefed fleet broker-config mosquitto --fleet {secured.fleet.path} -o {secured.files} "
        f"--bind 127.0.0.1 --port {secured.port} && kill -HUP {secured.broker.pid}"
    )
    listen = ["fleet", "admit", "--fleet", secured.fleet.path, "--port", secured.port, "--allow", "board-*"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_S)
        with (
            running(admit_log, sys.executable, "-m", "edgefed", *listen, "--then", tell),
            running(log, *start_command(root), NOTIFY_SOCKET=str(tmp_path / "notify")) as agent,
        ):
            told = [manager.recv(4096).decode() for _ in range(3)]
            wait_for(lambda: BOARD in status(secured), log, admit_log)
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(PATIENCE_S) == 0, log.read_text()
    assert told == [
        "READY=1",
        f"STATUS=asks fleet {NAME} to be admitted as {BOARD}",
        f"STATUS=enrolled in fleet {NAME} as {BOARD}",
    ]
    assert (claim.exists(), certificate.exists()) == (False, True)
    assert (root / "var/lib/edgefed/tls/key.pem").read_bytes() == key, "the key that it began with"
    assert f"enrolled as {BOARD} of fleet {NAME}" in log.read_text()

    claim.write_bytes((tmp_path / "board.token").read_bytes())  # as if its power had gone before the token was removed
    claim.chmod(0o600)
    with running(log, *start_command(root)):
        wait_for(lambda: status(secured)[BOARD]["state"]["status"] not in ("lost", "disconnected"), log)
    assert log.read_text().count("asks fleet") == 2, "not once more"
    assert not claim.exists()

    claim.write_bytes((tmp_path / "board.token").read_bytes()[:-40])  # and as if the power had damaged the file
    claim.chmod(0o600)
    before = log.read_text()
    with running(log, *start_command(root)):
        wait_for(lambda: "connected to the broker" in log.read_text().removeprefix(before), log)
    assert f"{BOARD} is enrolled already, and the token of no use any more: {claim}: not a file" in log.read_text()
    assert not claim.exists()


def test_a_token_of_another_fleet_is_not_taken_for_used(
    secured: Secured, rootfs: Rootfs, wheelhouse: Path, tmp_path: Path
) -> None:
    """A board moves to another fleet by being flashed again, and still has the files of the one before."""
    root, log = rootfs(), tmp_path / "agent.log"
    flash(secured, root, wheelhouse, tmp_path / "board.token")
    secrets = root / "var/lib/edgefed/tls"
    secrets.mkdir()
    theirs = FleetDirectory.create(tmp_path / "theirs", NAME, hosts=["b"], lifetimes=Lifetimes(), now=now())
    (secrets / "ca.pem").write_bytes(theirs.ca_file.read_bytes())
    (secrets / "certificate.pem").write_text("of the fleet before")
    with running(log, *start_command(root)):
        wait_for(lambda: "not enrolled (exit code 3)" in log.read_text(), log)
    assert "is the authority of another fleet than the token's" in log.read_text()
    assert (root / "etc/edgefed/claim/token").exists()


def test_a_used_token_is_refused_and_the_board_goes_on_asking(
    secured: Secured, rootfs: Rootfs, wheelhouse: Path, tmp_path: Path
) -> None:
    """The same token on a second board: its agent does not give up, and does not take part."""
    root, log, admit_log = rootfs(), tmp_path / "agent.log", tmp_path / "admit.log"
    flash(secured, root, wheelhouse, tmp_path / "board.token")
    listen = ["fleet", "admit", "--fleet", secured.fleet.path, "--port", secured.port, "--allow", "board-*"]
    with running(admit_log, sys.executable, "-m", "edgefed", *listen):
        first = tmp_path / "first"
        first.mkdir()
        (first / "agent.toml").write_text((root / "etc/edgefed/agent.toml").read_text().replace(f"{root}", f"{first}"))
        command = [sys.executable, "-m", "edgefed.cli.enroll_process"]
        subprocess.run([*command, first / "agent.toml", tmp_path / "board.token"], check=True, timeout=PATIENCE_S)
        with running(log, *start_command(root)) as agent:
            wait_for(lambda: "not enrolled (exit code 16); trying again in 5 s" in log.read_text(), log, admit_log)
            assert agent.poll() is None
    assert f"the fleet does not take {BOARD}: the token was used already" in log.read_text()
    assert (root / "etc/edgefed/claim/token").exists()
