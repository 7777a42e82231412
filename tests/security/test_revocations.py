"""Signatures by certificates that were taken back, or have ended, whatever the broker knows of it."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import pytest

from edgefed.errors import BrokerUnreachable, ConfigError, MessageError
from edgefed.security import certificates
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, BROKER
from edgefed.security.revocations import Revocations
from edgefed.security.signatures import Signer, read_signer, read_verifier
from tests.security.secured import Secured, device, now

BOARD, OTHER = device("board-07"), device("board-08")
TOPIC = "edgefed/v1/kitchen/device/board-07/up"


@pytest.fixture
def fleet(tmp_path: Path) -> FleetDirectory:
    made = FleetDirectory.create(tmp_path / "kitchen", "kitchen", hosts=["b"], lifetimes=Lifetimes(), now=now())
    for one in (BOARD, OTHER):
        made.enroll(one, days=30, now=now())
    return made


def signer_of(place: Path) -> Signer:
    return read_signer(place / "certificate.pem", place / "key.pem")


def test_a_revoked_signer_is_refused_as_soon_as_the_list_says_so(fleet: FleetDirectory) -> None:
    verifier = read_verifier(fleet.ca_file, fleet.revocation_list)
    said = signer_of(fleet.place(BOARD)).sign(TOPIC, b'{"a":1}', 1.8e9)
    assert verifier.verify(TOPIC, said, BOARD, now().timestamp()).payload == b'{"a":1}'
    fleet.revoke(OTHER, now=now())
    assert verifier.verify(TOPIC, said, BOARD, now().timestamp())
    fleet.revoke(BOARD, now=now())
    with pytest.raises(MessageError, match=r"signed with a certificate of board-07 that was revoked on 20.* UTC"):
        verifier.verify(TOPIC, said, BOARD, now().timestamp())
    assert read_verifier(fleet.ca_file).verify(TOPIC, said, BOARD, now().timestamp())  # who has no list, does not know


def test_a_new_certificate_of_the_same_device_counts(fleet: FleetDirectory) -> None:
    verifier = read_verifier(fleet.ca_file, fleet.revocation_list)
    old = signer_of(fleet.place(BOARD)).sign(TOPIC, b'{"a":1}', 1.8e9)
    place = fleet.enroll(BOARD, days=30, now=now(), renew=True)
    fleet.revoke(BOARD, now=now(), superseded_only=True)
    assert verifier.verify(TOPIC, signer_of(place).sign(TOPIC, b'{"a":1}', 1.8e9), BOARD, now().timestamp())
    with pytest.raises(MessageError, match="was revoked"):
        verifier.verify(TOPIC, old, BOARD, now().timestamp())


def test_an_expired_signer_is_refused_though_its_certificate_was_seen_in_force(fleet: FleetDirectory) -> None:
    verifier = read_verifier(fleet.ca_file, fleet.revocation_list)
    said = signer_of(fleet.place(BOARD)).sign(TOPIC, b'{"a":1}', 1.8e9)
    assert verifier.verify(TOPIC, said, BOARD, now().timestamp())
    later = now() + timedelta(days=31)
    with pytest.raises(MessageError, match=r"a certificate that counts from .*, and this machine's clock says"):
        verifier.verify(TOPIC, said, BOARD, later.timestamp())


def test_a_list_that_cannot_be_used_takes_nothing_back_again(
    fleet: FleetDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = certificates.read_certificate(fleet.ca_file.read_bytes(), "")
    first = fleet.revocation_list.read_bytes()
    (serial,) = fleet.revoke(BOARD, now=now())
    file = tmp_path / "crl.pem"
    file.write_bytes(fleet.revocation_list.read_bytes())
    known = Revocations(file, authority)
    other = FleetDirectory.create(tmp_path / "o", "kitchen", hosts=["b"], lifetimes=Lifetimes(), now=now())
    for content, problem in (
        (b"no list", "not a revocation list in PEM"),
        (first, "list number 1 is older than number 2"),
        (other.revocation_list.read_bytes(), "is not of the fleet's authority: it is another fleet's, or was changed"),
        (None, "No such file"),
    ):
        caplog.clear()
        file.unlink() if content is None else file.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert known.since(serial) is not None
            assert known.since(serial + 1) is None
        assert [problem in record.message for record in caplog.records] == [True]  # told once
    file.write_bytes(fleet.revocation_list.read_bytes())
    fleet.enroll(BOARD, days=1, now=now())
    (second,) = fleet.revoke(BOARD, now=now())
    assert known.since(second) is None
    file.write_bytes(fleet.revocation_list.read_bytes())
    assert known.since(second) is not None


def test_a_list_has_to_be_there_at_the_start_and_of_the_same_fleet(fleet: FleetDirectory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pem: cannot be read: No such file"):
        read_verifier(fleet.ca_file, tmp_path / "none.pem")
    other = FleetDirectory.create(tmp_path / "o", "kitchen", hosts=["b"], lifetimes=Lifetimes(), now=now())
    with pytest.raises(ConfigError, match="it is another fleet's"):
        read_verifier(fleet.ca_file, other.revocation_list)


def test_the_aggregator_gets_every_list(fleet: FleetDirectory, tmp_path: Path) -> None:
    place = fleet.place(AGGREGATOR)
    assert (place / "crl.pem").read_bytes() == fleet.revocation_list.read_bytes()
    (serial,) = fleet.revoke(BOARD, now=now())
    authority = certificates.read_certificate((place / "ca.pem").read_bytes(), "")
    assert Revocations(place / "crl.pem", authority).since(serial) is not None
    elsewhere = fleet.enroll(AGGREGATOR, days=30, now=now(), renew=True, output=tmp_path / "elsewhere")
    assert Revocations(elsewhere / "crl.pem", authority).since(serial) is not None
    assert not (fleet.place(BOARD) / "crl.pem").exists()


@pytest.mark.broker
async def test_a_broker_whose_certificate_was_revoked_is_not_connected_to(tmp_path: Path) -> None:
    secured = Secured(tmp_path)
    secured.enroll(BOARD)
    crl = tmp_path / "crl.pem"
    crl.write_bytes(secured.fleet.revocation_list.read_bytes())
    with secured.running():
        async with secured.connect(BOARD, tls_crl=str(crl)):
            pass
        secured.fleet.revoke(BROKER, now=now())
        crl.write_bytes(secured.fleet.revocation_list.read_bytes())
        with pytest.raises(BrokerUnreachable, match=r"its certificate was revoked \(.*crl\.pem\)"):
            async with secured.connect(BOARD, tls_crl=str(crl)):
                pass
        other = FleetDirectory.create(tmp_path / "o", "kitchen", hosts=["b"], lifetimes=Lifetimes(), now=now())
        with pytest.raises(BrokerUnreachable, match=r"crl\.pem is not of the authority in"):
            async with secured.connect(BOARD, tls_crl=str(other.revocation_list)):
                pass
        crl.write_bytes(b"no list")
        with pytest.raises(ConfigError, match=r"tls_crl: the revocation list in .*crl\.pem cannot be used"):
            async with secured.connect(BOARD, tls_crl=str(crl)):
                pass
