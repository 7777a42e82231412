"""`edgefed fleet …`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from edgefed.cli import main
from edgefed.config import tomllib
from edgefed.security import certificates, keys
from edgefed.security.fleet_directory import FleetDirectory

Run = Callable[..., Any]
COMMAND = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=board-07"


@pytest.fixture
def kitchen(edgefed: Run, tmp_path: Path) -> Path:
    assert edgefed("fleet", "init", tmp_path / "kitchen", "--broker-host", "broker.local").code == 0
    return tmp_path / "kitchen"


def listed(edgefed: Run, kitchen: Path, *options: str) -> dict[str, Any]:
    done = edgefed("fleet", "list", "-f", kitchen, "--json", *options)
    assert done.code == 0
    document = json.loads(done.out)
    assert document["fleet"] == "kitchen"
    return {entry["name"]: entry for entry in document["certificates"]}


@pytest.mark.parametrize("command", main.SUBCOMMANDS["fleet"])
def test_every_command_has_examples_as_written(edgefed: Run, command: str) -> None:
    done = edgefed("fleet", command, "--help")
    module, _, function = main.SUBCOMMANDS["fleet"][command].partition(":")
    examples = (inspect.getdoc(getattr(import_module(module), function)) or "").partition("Examples:\n")[2]
    assert re.match(rf"  edgefed fleet {command}\b", examples)
    for line in examples.splitlines():
        assert line.strip() in done.out


def test_keys_that_cannot_sign_are_refused_to_devices(edgefed: Run, kitchen: Path, tmp_path: Path) -> None:
    request = tmp_path / "board.csr"
    for name, code in (("board-07", 3), ("observer:dashboard", 0)):
        made = f"openssl req -new -newkey rsa:2048 -nodes -subj /CN={name} -keyout {tmp_path / 'key'} -out {request}"
        subprocess.run(made.split(), check=True, capture_output=True)
        done = edgefed("fleet", "enroll", name, "-f", kitchen, "--csr", request)
        assert done.code == code
    refused = edgefed("fleet", "rotate", "role:aggregator", "-f", kitchen, "--csr", request).err
    assert "not for 'role:aggregator'" in refused
    assert "board-07" not in listed(edgefed, kitchen)


def test_commands_that_are_recommended_can_be_copied(
    edgefed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = edgefed("fleet", "init", "my fleet", "--name", "kitchen", "--broker-host", "broker.local")
    added = edgefed("fleet", "enroll", "board-07", "-f", "my fleet")
    token = edgefed("fleet", "token", "board-08", "-f", "my fleet", "-o", "x.token")
    for told in (made, added, token):
        program, *command = shlex.split(told.err.splitlines()[-1].partition(": ")[2])
        assert (program, command[-2:]) == ("edgefed", ["--fleet", "my fleet"])
        assert edgefed(*command).code == 0
    assert "`edgefed fleet init 'another fleet'`" in edgefed("fleet", "enroll", "board-07", "-f", "another fleet").err


def test_without_the_authoritys_key(edgefed: Run, kitchen: Path) -> None:
    (kitchen / "ca" / "ca.key").unlink()
    for command in (("enroll", "board-07"), ("revoke", "role:aggregator"), ("token", "board-07", "-o", "x.token")):
        done = edgefed("fleet", *command, "-f", kitchen)
        assert (done.code, "ca.key is not here, and without the authority's key" in done.err) == (3, True)


def test_without_a_second_word(edgefed: Run) -> None:
    done = edgefed("fleet")
    assert done.code == 2
    assert "broker-config" in done.out + done.err
    assert "Did you mean 'enroll'?" in edgefed("fleet", "enrol").err


def test_a_fleet_is_named_like_its_directory_or_as_told(edgefed: Run, kitchen: Path, tmp_path: Path) -> None:
    assert FleetDirectory(kitchen).fleet == "kitchen"
    assert edgefed("fleet", "init", tmp_path / "b", "--name", "barn", "--broker-host", "::1").code == 0
    assert FleetDirectory(tmp_path / "b").fleet == "barn"
    done = edgefed("fleet", "init", tmp_path / "No Name", "--broker-host", "b")
    assert (done.code, "fleet name 'No Name' is not usable" in done.err) == (3, True)


def test_an_authority_is_never_overwritten(edgefed: Run, kitchen: Path) -> None:
    before = (kitchen / "ca" / "ca.key").read_bytes()
    done = edgefed("fleet", "init", kitchen, "--broker-host", "b")
    assert (done.code, "never overwritten" in done.err) == (3, True)
    assert (kitchen / "ca" / "ca.key").read_bytes() == before


def test_from_enrolment_to_the_end(edgefed: Run, kitchen: Path) -> None:
    done = edgefed("fleet", "enroll", "board-07", "-f", kitchen)
    place = kitchen / "devices" / "board-07"
    assert done.out == f"wrote {place}/ca.pem\nwrote {place}/certificate.pem\nwrote {place}/key.pem\n"
    assert "the broker has to learn of it" in done.err
    assert edgefed("fleet", "enroll", "board-07", "-f", kitchen).code == 3
    assert edgefed("fleet", "rotate", "board-07", "-f", kitchen, "--days", 10).code == 0
    assert listed(edgefed, kitchen)["board-07"]["state"] == "ends soon"
    states = [
        line.split("\t")[2]
        for line in edgefed("fleet", "list", "-f", kitchen, "--all").out.splitlines()
        if line.startswith("board-07")
    ]
    assert states == ["superseded", "ends soon"]
    assert edgefed("fleet", "revoke", "board-07", "-f", kitchen, "--superseded").code == 0
    assert listed(edgefed, kitchen)["board-07"]["state"] == "ends soon"
    done = edgefed("fleet", "revoke", "board-07", "-f", kitchen)
    assert done.code == 0
    assert listed(edgefed, kitchen)["board-07"]["state"] == "revoked"
    assert listed(edgefed, kitchen)["board-07"]["serial"] in done.out


def test_no_key_is_ever_shown(edgefed: Run, kitchen: Path) -> None:
    said = "".join(
        done.out + done.err
        for done in (
            edgefed("-vv", "fleet", "enroll", "board-07", "-f", kitchen),
            edgefed("-vv", "fleet", "rotate", "board-07", "-f", kitchen),
            edgefed("-vv", "fleet", "broker-config", "mosquitto", "-f", kitchen),
            edgefed("-vv", "fleet", "list", "-f", kitchen, "--all"),
        )
    )
    for file in (*kitchen.rglob("key.pem"), kitchen / "ca" / "ca.key"):
        for line in file.read_text().splitlines()[1:-1]:
            assert line not in said


def test_a_request_that_was_made_on_the_board(edgefed: Run, kitchen: Path, tmp_path: Path) -> None:
    key, request = tmp_path / "board.key", tmp_path / "board.csr"
    subprocess.run(
        [*COMMAND.split(), "-keyout", key, "-out", request],
        check=True,
        capture_output=True,
    )
    done = edgefed("fleet", "enroll", "board-07", "-f", kitchen, "--csr", request, "-o", tmp_path / "stick")
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "stick").iterdir()} == {"ca.pem", "certificate.pem"}
    made = certificates.read_certificate((tmp_path / "stick" / "certificate.pem").read_bytes(), "")
    assert made.public_key() == keys.read_key(key.read_bytes(), "").public_key()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("enroll", "Board"), "device id 'Board' is not usable"),
        (("enroll", "role:cook"), "is nobody in a fleet"),
        (("enroll", "board-07", "--csr", "none.csr"), "none.csr: cannot be used: No such file"),
        (("enroll", "board-07", "--broker-host", "b"), "hosts are for the certificate of role:broker, not of board-07"),
        (("enroll", "board-07", "--days", "36500"), "give it at most 36"),
        (("rotate", "board-07"), "no certificate to renew: `edgefed fleet enroll` makes one"),
        (("revoke", "board-07"), "no certificate that could be taken back"),
    ],
)
def test_what_cannot_be(edgefed: Run, kitchen: Path, arguments: tuple[str, ...], problem: str) -> None:
    done = edgefed("fleet", *arguments, "-f", kitchen)
    assert done.code == 3
    assert problem in done.err
    assert "board-07" not in listed(edgefed, kitchen)


@pytest.mark.parametrize("command", ["enroll", "rotate", "revoke"])
def test_a_directory_without_a_fleet(edgefed: Run, tmp_path: Path, command: str) -> None:
    done = edgefed("fleet", command, "board-07", "-f", tmp_path)
    assert done.code == 3
    assert f"{tmp_path} holds no fleet: `edgefed fleet init {tmp_path}` makes one" in done.err


def test_the_brokers_configuration(edgefed: Run, kitchen: Path, tmp_path: Path) -> None:
    edgefed("fleet", "enroll", "board-07", "-f", kitchen)
    done = edgefed(
        "fleet",
        "broker-config",
        "mosquitto",
        "-f",
        kitchen,
        "-o",
        tmp_path / "out",
        "--installed-at",
        "/mosquitto/config",
    )
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "acl",
        "ca.pem",
        "certificate.pem",
        "crl.pem",
        "data",
        "key.pem",
        "mosquitto.conf",
    }
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "out").iterdir()} == {0}
    configuration = (tmp_path / "out" / "mosquitto.conf").read_text()
    assert "\nkeyfile /mosquitto/config/key.pem\n" in configuration
    assert str(tmp_path) not in configuration
    assert "user board-07\n" in (tmp_path / "out" / "acl").read_text()


def test_mosquitto_2_1_gets_no_deprecated_options(edgefed: Run, kitchen: Path) -> None:
    """Release notes of 2.1.0: acl_file and per_listener_settings are deprecated in favour of plugins."""
    done = edgefed(
        "fleet", "broker-config", "mosquitto", "-f", kitchen, "--version", "2.1", "--acl-plugin", "/p/acl.so"
    )
    assert done.code == 0, done.err
    configuration = (kitchen / "broker-config" / "mosquitto.conf").read_text()
    assert "its plugin for ACL files has to be at /p/acl.so" in done.out
    acl = f"global_plugin /p/acl.so\nplugin_opt_acl_file {kitchen}/broker-config/acl\n"
    assert acl in configuration
    assert not re.search("^(acl_file|per_listener_settings|password_file)", configuration, re.MULTILINE)
    done = edgefed("fleet", "broker-config", "mosquitto", "-f", kitchen, "--acl-plugin", "/p/acl.so")
    assert (done.code, "--acl-plugin is for --version 2.1" in done.err) == (2, True)


def test_an_aggregator_beside_the_broker_gets_a_port_and_is_told_how_to_use_it(edgefed: Run, kitchen: Path) -> None:
    done = edgefed("fleet", "broker-config", "mosquitto", "-f", kitchen, "--local-port", 1884)
    assert done.code == 0, done.err
    lines = done.out[done.out.index("  host") : done.out.index("broker-password") + len('broker-password"')]
    broker = tomllib.loads(lines)
    assert (broker["host"], broker["port"], broker["local"]) == ("127.0.0.1", 1884, True)
    assert Path(broker["password_file"]).read_text().strip()
    configuration = (kitchen / "broker-config" / "mosquitto.conf").read_text()
    assert f"listener 1884 127.0.0.1\npassword_file {kitchen}/broker-config/passwords\n" in configuration
    assert f"user {broker['username']}\n" in (kitchen / "broker-config" / "acl").read_text()
    done = edgefed("fleet", "broker-config", "mosquitto", "-f", kitchen, "--local-port", 8883)
    assert (done.code, "--local-port is another port" in done.err) == (2, True)
    done = edgefed("fleet", "broker-config", "emqx", "-f", kitchen, "--local-port", 1884)
    assert (done.code, done.out, "--local-port is for Mosquitto" in done.err) == (2, "", True)


def test_a_broker_without_a_certificate_gets_no_configuration(edgefed: Run, kitchen: Path) -> None:
    (kitchen / "broker" / "key.pem").chmod(0o644)
    done = edgefed("fleet", "broker-config", "mosquitto", "-f", kitchen)
    assert (done.code, "holds a secret, and its mode 0644" in done.err) == (3, True)
    edgefed("fleet", "revoke", "role:broker", "-f", kitchen)
    done = edgefed("fleet", "broker-config", "mosquitto", "-f", kitchen)
    assert (done.code, "the broker has no certificate in force" in done.err) == (3, True)
    done = edgefed("fleet", "enroll", "role:broker", "-f", kitchen)
    assert (done.code, "under which name or address" in done.err) == (3, True)
    assert edgefed("fleet", "enroll", "role:broker", "-f", kitchen, "--broker-host", "b").code == 0
    assert edgefed("fleet", "broker-config", "mosquitto", "-f", kitchen).code == 0


def test_the_rules_for_emqx(edgefed: Run, kitchen: Path) -> None:
    edgefed("fleet", "enroll", "board-07", "-f", kitchen)
    edgefed("fleet", "enroll", "board-08", "-f", kitchen)
    edgefed("fleet", "revoke", "board-08", "-f", kitchen)
    done = edgefed("fleet", "broker-config", "emqx", "-f", kitchen)
    assert "no_match = deny" in done.err
    rows = json.loads(done.out)
    assert [row["username"] for row in rows] == ["board-07", "role:aggregator", "board-08"]
    forbidden = [{"topic": topic, "permission": "deny", "action": "all"} for topic in ("#", "$SYS/#", "$delayed/#")]
    assert rows[2]["rules"] == forbidden
    board = rows[0]["rules"]
    assert board[-3:] == forbidden
    allowed = {rule["topic"].removeprefix("edgefed/v1/kitchen/"): rule["action"] for rule in board[:-3]}
    assert allowed == {
        "device/board-07/state": "all",
        "device/board-07/profile": "publish",
        "device/board-07/up": "publish",
        "device/board-07/down": "subscribe",
        "aggregator/state": "subscribe",
        "round": "subscribe",
        "blob/+": "subscribe",
    }
    assert {rule["permission"] for rule in board[:-3]} == {"allow"}
