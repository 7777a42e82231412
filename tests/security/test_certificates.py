"""Certificates as another implementation reads them (openssl), and what is refused."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from edgefed.errors import ConfigError
from edgefed.security import certificates, keys
from edgefed.security.certificates import Authority
from edgefed.security.identities import AGGREGATOR, BROKER, Identity
from tests.security.openssl import NOW, verify

DEVICE = Identity("device", "board-07")


@pytest.fixture
def authority() -> Authority:
    return certificates.make_authority("kitchen", days=3650, now=NOW)


@pytest.mark.parametrize(
    ("identity", "purpose", "forbidden"),
    [
        (DEVICE, "sslclient", "sslserver"),
        (AGGREGATOR, "sslclient", "sslserver"),
        (BROKER, "sslserver", "sslclient"),
    ],
)
def test_a_certificate_has_one_use(
    tmp_path: Path, authority: Authority, identity: Identity, purpose: str, forbidden: str
) -> None:
    key = keys.new_key("device").public_key()
    made = certificates.issue(authority, identity, key, days=30, now=NOW, hosts=["broker.local"])
    assert ": OK" in verify(tmp_path, authority, made, "-purpose", purpose)
    assert "unsuitable certificate purpose" in verify(tmp_path, authority, made, "-purpose", forbidden)
    assert certificates.common_name(made) == identity.common_name


def test_the_brokers_certificate_is_for_its_hosts(tmp_path: Path, authority: Authority) -> None:
    hosts = ["broker.local", "192.168.1.7", "fe80::1", "bücher.example"]
    made = certificates.issue(authority, BROKER, keys.new_key("device").public_key(), days=30, now=NOW, hosts=hosts)
    assert certificates.hosts_of(made) == ("broker.local", "192.168.1.7", "fe80::1", "xn--bcher-kva.example")
    assert ": OK" in verify(tmp_path, authority, made, "-verify_hostname", "broker.local")
    assert ": OK" in verify(tmp_path, authority, made, "-verify_ip", "192.168.1.7")
    assert "hostname mismatch" in verify(tmp_path, authority, made, "-verify_hostname", "elsewhere.local")


def test_a_member_cannot_make_members(tmp_path: Path, authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    member = certificates.issue(authority, DEVICE, key.public_key(), days=30, now=NOW)
    theirs = certificates.issue(Authority(member, key), AGGREGATOR, key.public_key(), days=1, now=NOW)
    (tmp_path / "member.pem").write_bytes(certificates.certificate_pem(member))
    said = verify(tmp_path, authority, theirs, "-untrusted", str(tmp_path / "member.pem"))
    assert "invalid CA certificate" in said


def test_lifetimes(authority: Authority) -> None:
    made = certificates.issue(authority, DEVICE, keys.new_key("device").public_key(), days=30, now=NOW)
    assert made.not_valid_after_utc == (NOW + timedelta(days=30)).replace(microsecond=0)
    assert made.not_valid_before_utc < NOW


def test_a_later_certificate_has_a_larger_number(authority: Authority) -> None:
    key = keys.new_key("device").public_key()
    moments = [NOW + timedelta(microseconds=step) for step in range(1, 6)]
    numbers = [certificates.issue(authority, DEVICE, key, days=1, now=now).serial_number for now in moments]
    assert numbers == sorted(numbers)
    assert all(number.bit_length() < 160 for number in numbers)  # RFC 5280, 4.1.2.2: twenty octets


def test_an_authority_that_is_not_in_force_names_the_clock(authority: Authority) -> None:
    key = keys.new_key("device").public_key()
    for now in (datetime(1970, 1, 2, tzinfo=timezone.utc), NOW + timedelta(days=4000)):
        with pytest.raises(ConfigError, match=rf"clock says {now:%Y-%m-%d %H:%M}: is the clock right"):
            certificates.issue(authority, DEVICE, key, days=1, now=now)
    with pytest.raises(ConfigError, match="give it at most 3639 days"):
        certificates.issue(authority, DEVICE, key, days=3645, now=NOW + timedelta(days=10))


@pytest.mark.parametrize("host", ["", "a b", "x" * 64 + ".local", "broker..local", "*", "mqtt://broker"])
def test_a_host_that_is_none(authority: Authority, host: str) -> None:
    with pytest.raises(ConfigError, match="is neither a host name nor an address"):
        certificates.issue(authority, BROKER, keys.new_key("device").public_key(), days=1, now=NOW, hosts=[host])
