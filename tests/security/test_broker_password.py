from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from edgefed.errors import ConfigError
from edgefed.protocol.topics import Topics
from edgefed.security.broker_password import LOCAL_AGGREGATOR, PASSWORD_FILE, broker_password, mosquitto_passwords
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, BROKER, Identity
from edgefed.security.mosquitto_files import MosquittoOptions, mosquitto_acl, mosquitto_conf, write_mosquitto

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDirectory:
    return FleetDirectory.create(tmp_path / "kitchen", "kitchen", hosts=["broker"], lifetimes=Lifetimes(), now=NOW)


def file(fleet: FleetDirectory) -> Path:
    return fleet.place(AGGREGATOR) / PASSWORD_FILE


def test_it_is_made_once_and_is_its_owners_alone(fleet: FleetDirectory) -> None:
    password = broker_password(fleet, NOW)
    assert len(password) >= 43
    assert file(fleet).read_text().splitlines()[0] == password
    assert file(fleet).stat().st_mode & 0o777 == 0o600
    assert broker_password(fleet, NOW) == password


def test_it_does_not_outlive_the_certificate_it_goes_with(fleet: FleetDirectory) -> None:
    password = broker_password(fleet, NOW)
    fleet.enroll(AGGREGATOR, days=30, now=NOW + timedelta(days=1), renew=True)
    renewed = broker_password(fleet, NOW + timedelta(days=1))
    assert renewed != password
    fleet.revoke(AGGREGATOR, now=NOW + timedelta(days=2))
    with pytest.raises(ConfigError, match=r"no certificate in force.*edgefed fleet rotate role:aggregator"):
        broker_password(fleet, NOW + timedelta(days=2))


def test_who_cannot_keep_it_secret_is_told(fleet: FleetDirectory) -> None:
    broker_password(fleet, NOW)
    file(fleet).chmod(0o644)
    with pytest.raises(ConfigError, match="holds a secret, and its mode 0644"):
        broker_password(fleet, NOW)


@pytest.mark.parametrize("content", ["", "\n", "short"])
def test_what_is_damaged_is_made_anew(fleet: FleetDirectory, content: str) -> None:
    broker_password(fleet, NOW)
    file(fleet).write_text(content)
    assert len(broker_password(fleet, NOW)) >= 43


def test_mosquitto_gets_no_more_than_a_salted_hash() -> None:
    user, _, kind, iterations, salt, value = mosquitto_passwords("secret").strip().replace(":", "$").split("$")
    assert (user, kind) == (LOCAL_AGGREGATOR, "7")
    expected = hashlib.pbkdf2_hmac("sha512", b"secret", base64.b64decode(salt), int(iterations))
    assert base64.b64decode(value) == expected
    assert mosquitto_passwords("secret") != mosquitto_passwords("secret")


def test_the_user_of_the_local_port_has_the_aggregators_rights_and_goes_with_it() -> None:
    topics, board = Topics("kitchen"), Identity("device", "board")

    def rights(user: str, acl: str) -> list[str]:
        blocks = dict(block.split("\n", 1) for block in acl.strip().split("\n\n"))
        return blocks[f"user {user}"].split("\n")

    acl = mosquitto_acl(topics, [AGGREGATOR, BROKER, board], local=True)
    assert rights(LOCAL_AGGREGATOR, acl) == rights("role:aggregator", acl)
    assert LOCAL_AGGREGATOR not in mosquitto_acl(topics, [AGGREGATOR, board])
    assert LOCAL_AGGREGATOR not in mosquitto_acl(topics, [BROKER, board], local=True)


def test_no_member_can_have_its_name() -> None:
    with pytest.raises(ConfigError):
        Identity.parse(LOCAL_AGGREGATOR)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_the_local_port_is_of_loopback_alone(tmp_path: Path, version: str) -> None:
    options = MosquittoOptions(installed_at=tmp_path, version=version, port=8883, local_port=1884)  # type: ignore[arg-type]
    lines = mosquitto_conf("kitchen", options).splitlines()
    assert [line for line in lines if line.startswith("listener")] == ["listener 8883", "listener 1884 127.0.0.1"]
    assert "allow_anonymous false" in lines
    without = mosquitto_conf("kitchen", MosquittoOptions(installed_at=tmp_path, version=version))  # type: ignore[arg-type]
    assert "password" not in without


def test_the_brokers_directory_has_the_hash_and_not_the_password(fleet: FleetDirectory, tmp_path: Path) -> None:
    written = write_mosquitto(fleet, tmp_path / "out", MosquittoOptions(installed_at=tmp_path, local_port=1884), NOW)
    passwords = next(path for path in written if path.name == "passwords")
    assert passwords.stat().st_mode & 0o777 == 0o600
    password = broker_password(fleet, NOW).encode()
    assert not any(password in path.read_bytes() for path in written)
