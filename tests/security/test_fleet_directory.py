from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from edgefed.errors import ConfigError
from edgefed.security import certificates, keys
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, BROKER, Identity
from edgefed.security.revocation_lists import read_revocation_list
from edgefed.security.signing_requests import make_request

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
LATER = NOW + timedelta(days=100)
DEVICE = Identity("device", "board-07")


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDirectory:
    return FleetDirectory.create(tmp_path / "kitchen", "kitchen", hosts=["broker"], lifetimes=Lifetimes(), now=NOW)


def modes(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): path.stat().st_mode & 0o777 for path in directory.rglob("*")}


def serial(place: Path) -> int:
    return certificates.read_certificate((place / "certificate.pem").read_bytes(), "").serial_number


def test_a_new_fleet_has_an_authority_a_broker_and_an_aggregator(fleet: FleetDirectory) -> None:
    assert FleetDirectory(fleet.path).fleet == "kitchen"
    assert fleet.members(NOW) == [AGGREGATOR, BROKER]
    found = modes(fleet.path)
    assert {name: mode for name, mode in found.items() if name.endswith(("key", "key.pem"))} == {
        "ca/ca.key": 0o600,
        "aggregator/key.pem": 0o600,
        "broker/key.pem": 0o600,
    }
    assert {found[name] for name in ("ca", "ca/issued", "aggregator", "broker")} == {0o700}
    assert fleet.path.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in fleet.path.parent.iterdir()] == ["kitchen"]


def test_an_authority_is_never_overwritten(fleet: FleetDirectory) -> None:
    before = (fleet.path / "ca" / "ca.key").read_bytes()
    with pytest.raises(ConfigError, match="kitchen exists already; a fleet's authority is never overwritten"):
        FleetDirectory.create(fleet.path, "kitchen", hosts=["broker"], lifetimes=Lifetimes(), now=NOW)
    assert (fleet.path / "ca" / "ca.key").read_bytes() == before


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a host name"):
        FleetDirectory.create(tmp_path / "new", "kitchen", hosts=["b!"], lifetimes=Lifetimes(), now=NOW)
    with pytest.raises(ConfigError, match="before the certificate would"):
        FleetDirectory.create(
            tmp_path / "new", "kitchen", hosts=["b"], lifetimes=Lifetimes(authority_days=5, member_days=6), now=NOW
        )
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_a_fleet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no fleet: `edgefed fleet init .*` makes one"):
        FleetDirectory(tmp_path)


def test_a_device_gets_a_key_that_fits_its_certificate(fleet: FleetDirectory) -> None:
    place = fleet.enroll(DEVICE, days=365, now=NOW)
    assert modes(place) == {"key.pem": 0o600, "certificate.pem": 0o644, "ca.pem": 0o644}
    key = keys.read_key((place / "key.pem").read_bytes(), "")
    made = certificates.read_certificate((place / "certificate.pem").read_bytes(), "")
    assert made.public_key() == key.public_key()
    made.verify_directly_issued_by(certificates.read_certificate((place / "ca.pem").read_bytes(), ""))
    assert fleet.members(NOW) == [DEVICE, AGGREGATOR, BROKER]
    with pytest.raises(ConfigError, match="board-07 is enrolled already"):
        fleet.enroll(DEVICE, days=365, now=NOW)


def test_a_key_that_was_made_elsewhere_stays_there(fleet: FleetDirectory, tmp_path: Path) -> None:
    key = keys.new_key("device")
    request = tmp_path / "board.csr"
    request.write_bytes(make_request(key, DEVICE))
    place = fleet.enroll(DEVICE, days=365, now=NOW, request=request, output=tmp_path / "stick")
    assert place == tmp_path / "stick"
    assert set(modes(place)) == {"certificate.pem", "ca.pem"}
    made = certificates.read_certificate((place / "certificate.pem").read_bytes(), "")
    assert made.public_key() == key.public_key()


def test_rotation_keeps_the_old_one_good_until_it_is_revoked(fleet: FleetDirectory) -> None:
    old = serial(fleet.enroll(DEVICE, days=365, now=NOW))
    place = fleet.enroll(DEVICE, days=365, now=LATER, renew=True)
    new = serial(place)
    assert [entry.serial for entry in fleet.issued() if entry.in_force(LATER) and entry.identity == DEVICE] == [
        old,
        new,
    ]
    assert fleet.revoke(DEVICE, now=LATER, superseded_only=True) == [old]
    assert [entry.serial for entry in fleet.issued() if entry.in_force(LATER) and entry.identity == DEVICE] == [new]
    with pytest.raises(ConfigError, match="no certificate but its newest that could be taken back"):
        fleet.revoke(DEVICE, now=LATER, superseded_only=True)


def test_a_key_of_an_earlier_certificate_is_not_left_beside_the_new_one(fleet: FleetDirectory, tmp_path: Path) -> None:
    fleet.enroll(DEVICE, days=365, now=NOW)
    request = tmp_path / "board.csr"
    request.write_bytes(make_request(keys.new_key("device"), DEVICE))
    place = fleet.enroll(DEVICE, days=365, now=LATER, renew=True, request=request)
    assert set(modes(place)) == {"certificate.pem", "ca.pem"}


def test_the_brokers_new_certificate_is_for_the_same_hosts(fleet: FleetDirectory) -> None:
    place = fleet.enroll(BROKER, days=30, now=LATER, renew=True)
    made = certificates.read_certificate((place / "certificate.pem").read_bytes(), "")
    assert certificates.hosts_of(made) == ("broker",)


def test_who_was_revoked_may_be_enrolled_again(fleet: FleetDirectory) -> None:
    first = serial(fleet.enroll(DEVICE, days=365, now=NOW))
    assert fleet.revoke(DEVICE, now=LATER) == [first]
    assert DEVICE not in fleet.members(LATER)
    with pytest.raises(ConfigError, match="board-07 has no certificate that could be taken back"):
        fleet.revoke(DEVICE, now=LATER)
    with pytest.raises(ConfigError, match="no certificate to renew"):
        fleet.enroll(DEVICE, days=365, now=LATER, renew=True)
    fleet.enroll(DEVICE, days=365, now=LATER)
    assert DEVICE in fleet.members(LATER)
    entries = [entry for entry in fleet.issued() if entry.identity == DEVICE]
    assert [entry.revoked for entry in entries] == [LATER, None]


def test_who_has_expired_is_no_member_and_may_rotate(fleet: FleetDirectory) -> None:
    fleet.enroll(DEVICE, days=10, now=NOW)
    assert DEVICE not in fleet.members(LATER)
    fleet.enroll(DEVICE, days=10, now=LATER, renew=True)
    assert DEVICE in fleet.members(LATER)


def test_a_key_that_others_can_read_is_refused(fleet: FleetDirectory) -> None:
    (fleet.path / "ca" / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"ca\.key holds a secret, and its mode 0640 lets others"):
        fleet.enroll(DEVICE, days=365, now=NOW)
    assert DEVICE not in fleet.members(NOW)


def test_a_key_of_another_authority_is_refused(fleet: FleetDirectory) -> None:
    file = fleet.path / "ca" / "ca.key"
    file.write_bytes(keys.key_pem(keys.new_key("device")))
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of .*ca\.pem"):
        fleet.enroll(DEVICE, days=365, now=NOW)


@pytest.mark.parametrize("name", ["ca/ca.pem", "ca/ca.key", "ca/crl.pem"])
def test_a_damaged_file_is_named(fleet: FleetDirectory, name: str) -> None:
    (fleet.path / name).write_bytes(b"-----BEGIN")
    with pytest.raises(ConfigError, match=name):
        FleetDirectory(fleet.path).enroll(DEVICE, days=365, now=NOW)


def test_two_operators_at_once_take_nothing_back_from_each_other(fleet: FleetDirectory) -> None:
    names = [Identity("device", f"board-{number}") for number in range(12)]

    def come_and_go(identity: Identity) -> None:
        mine = FleetDirectory(fleet.path)
        mine.enroll(identity, days=365, now=NOW)
        mine.revoke(identity, now=NOW)

    threads = [threading.Thread(target=come_and_go, args=(identity,)) for identity in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(entry.revoked is not None for entry in fleet.issued()) == len(names)
    _, number = read_revocation_list(fleet.revocation_list.read_bytes(), "")
    assert number == 1 + len(names)
