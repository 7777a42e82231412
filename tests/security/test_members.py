"""Real processes with the files that `edgefed fleet` writes: an agent comes up over mutual TLS, and is seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefed.protocol.messages.retained import DeviceState
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.security.authorship import read_authorship
from edgefed.security.broker_password import LOCAL_AGGREGATOR, PASSWORD_FILE, broker_password
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.transport.signed import SignedTransport
from tests.security.secured import NAME, Secured, device, now, tls

pytestmark = pytest.mark.broker
PATIENCE_S = 60
AGENT = """\
device = "{name}"
fleet = "{fleet}"
state = "state-{name}"
[broker]
host = "127.0.0.1"
port = {port}
tls_ca = "{tls_ca}"
tls_certificate = "{tls_cert}"
tls_key = "{tls_key}"
[data]
path = "data.jsonl"
[profile]
measure = "quick"
"""


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    arena = Secured(tmp_path)
    arena.enroll(device("board-07"))
    arena.enroll(Identity("observer", "desk"))
    (tmp_path / "data.jsonl").write_text('{"source": "a b c", "target": "d"}\n')
    with arena.running():
        yield arena


def configure(secured: Secured, path: Path, name: str, place: Path) -> Path:
    config = path / f"{name}.toml"
    config.write_text(AGENT.format(name=name, fleet=NAME, port=secured.port, **tls(place)))
    return config


def edgefed(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgefed", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def test_an_agent_comes_up_and_an_observer_sees_it(secured: Secured, tmp_path: Path) -> None:
    config = configure(secured, tmp_path, "board-07", secured.fleet.place(device("board-07")))
    desk = secured.fleet.place(Identity("observer", "desk"))
    looking = ["--host", "127.0.0.1", "--port", secured.port, "--fleet", NAME, "--identity", desk]
    with (tmp_path / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "edgefed", "-v", "agent", "--config", str(config)], stdout=log, stderr=log
        )
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        seen: dict[str, object] = {}
        while "board-07" not in seen:
            assert agent.poll() is None, (tmp_path / "agent.log").read_text()
            assert time.monotonic() < deadline_s, (tmp_path / "agent.log").read_text()
            shown = edgefed("status", *looking, "--json", "--wait-s", 0.3)
            assert shown.returncode == 0, shown.stderr
            seen = json.loads(shown.stdout)["devices"]
        stranger = edgefed("status", *looking[:-2])
        assert (stranger.returncode, "no broker answers" in stranger.stderr) == (6, True)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(PATIENCE_S) == 0, (tmp_path / "agent.log").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            agent.kill()
        agent.wait()


def test_who_looks_beside_the_broker_may_come_in_at_either_port(secured: Secured, tmp_path: Path) -> None:
    place, desk = secured.fleet.place(AGGREGATOR), secured.fleet.place(Identity("observer", "desk"))
    broker_password(secured.fleet, now())
    config = tmp_path / "federation.toml"
    files = {"tls_ca": place / "ca.pem", "tls_certificate": place / "certificate.pem", "tls_key": place / "key.pem"}
    named = {**files, "host": "127.0.0.1", "username": LOCAL_AGGREGATOR, "password_file": place / PASSWORD_FILE}
    lines = "".join(f'{option} = "{value}"\n' for option, value in named.items())
    config.write_text(
        f'fleet = "{NAME}"\n[model]\nname = "m"\n[broker]\nport = {secured.local_port}\nlocal = true\n{lines}'
    )
    words: tuple[tuple[object, ...], ...] = ((), ("--port", secured.port), ("--port", secured.port, "--identity", desk))
    for extra in words:
        shown = edgefed("status", "--config", config, "--json", "--wait-s", 0.3, *extra)
        assert shown.returncode == 0, shown.stderr
    away = edgefed("status", "--config", config, "--host", "localhost.invalid")
    assert (away.returncode, "Traceback" in away.stderr) == (6, False)


def test_the_states_of_a_signed_agent_are_its_own_to_the_last(secured: Secured, tmp_path: Path) -> None:
    """A forged state is left aside, and replaced by the agent; when it is killed, its will is believed."""
    config = configure(secured, tmp_path, "board-07", secured.fleet.place(device("board-07")))
    config.write_text(config.read_text().replace("[data]", "signed = true\n[data]"))
    desk = secured.fleet.place(Identity("observer", "desk"))
    acl, topic = secured.files / "acl", f"edgefed/v1/{NAME}/device/board-07/state"
    acl.write_text(acl.read_text().replace("user observer:desk\n", f"user observer:desk\ntopic write {topic}\n"))
    secured.broker.reload()

    def status() -> dict[str, Any]:
        shown = edgefed("status", "--config", config, "--identity", desk, "--json", "--wait-s", 0.3)
        assert shown.returncode == 0, shown.stderr
        document: dict[str, Any] = json.loads(shown.stdout)
        return document

    def wait_for(agent: subprocess.Popen[bytes] | None, wanted: str) -> dict[str, Any]:
        """Waits until the broker keeps this state of the agent, and nothing that is to be left aside."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            document = status()
            said = document["devices"].get("board-07", {"state": {}})["state"]
            if said.get("status") == wanted and not document["distrusted"]:
                return document
            assert agent is None or agent.poll() is None, (tmp_path / "agent.log").read_text()
            assert time.monotonic() < deadline_s, (document, (tmp_path / "agent.log").read_text())

    async def forge() -> None:
        async with secured.connect(desk) as transport:
            await transport.publish(topic, encode(DeviceState(status="sleeping", instance="forged")), retain=True)

    with (tmp_path / "agent.log").open("wb") as log:
        command = [sys.executable, "-m", "edgefed", "-v", "agent", "--config", str(config)]
        agent = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(agent, "ready")
            asyncio.run(forge())
            assert wait_for(agent, "ready")["devices"]["board-07"]["profile"] is not None
        finally:
            agent.kill()
            agent.wait()
    wait_for(None, "lost")
    asyncio.run(forge())
    document = status()
    assert document["devices"] == {}
    assert document["distrusted"] == {topic: "it is not signed, and only board-07 may say that"}


def test_of_a_device_that_was_revoked_status_says_so_once(secured: Secured, tmp_path: Path) -> None:
    """Though the broker keeps its state and its profile, each with its signature."""
    config = configure(secured, tmp_path, "board-07", secured.fleet.place(device("board-07")))
    crl = secured.fleet.revocation_list
    config.write_text(config.read_text().replace("[data]", f'signed = true\ntls_crl = "{crl}"\n[data]'))

    async def say() -> None:
        place = secured.fleet.place(device("board-07"))
        seal = read_authorship(
            Topics(NAME),
            device("board-07"),
            tmp_path / "memory",
            ca=place / "ca.pem",
            certificate=place / "certificate.pem",
            key=place / "key.pem",
        )
        async with secured.connect(device("board-07")) as connected:
            transport = SignedTransport(connected, seal)
            for channel in ("state", "profile"):
                state = encode(DeviceState(status="ready", instance="x"))
                await transport.publish(Topics(NAME).device("board-07", channel), state, retain=True)

    asyncio.run(say())
    secured.fleet.revoke(device("board-07"), now=now())
    looking = ["--config", config, "--identity", secured.fleet.place(Identity("observer", "desk")), "--wait-s", 0.5]
    deadline_s = time.monotonic() + PATIENCE_S

    def told(*options: str) -> str:
        while True:
            shown = edgefed(*options, "status", *looking)
            assert shown.returncode == 0, shown.stderr
            if "left aside the profile and the state of board-07: it is signed with a certificate" in shown.stderr:
                return shown.stderr
            assert time.monotonic() < deadline_s, shown.stderr

    assert told().count("was revoked") == 1
    assert told("-v").count("was revoked") == 3  # and of each message, for who wants to know


@pytest.mark.parametrize("wrong", ["mode", "revoked"])
def test_an_agent_that_may_not_says_why(secured: Secured, tmp_path: Path, wrong: str) -> None:
    place = secured.fleet.place(device("board-07"))
    config = configure(secured, tmp_path, "board-07", place)
    if wrong == "mode":
        (place / "key.pem").chmod(0o644)
        code, reason = 3, "key.pem holds a secret, and its mode 0644 lets others than its owner at it"
    else:
        secured.fleet.revoke(device("board-07"), now=now())
        secured.write()
        secured.broker.reload()
        code, reason = 6, "may have been revoked, or the broker's clock may be wrong"
    done = edgefed("agent", "--config", config, "--require-broker")
    assert done.returncode == code
    assert reason in done.stderr
