"""Certificates as another implementation reads them (openssl), and what is refused."""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import NameOID

from edgefed.errors import ConfigError
from edgefed.security import certificates
from edgefed.security.certificates import Authority
from edgefed.security.identities import AGGREGATOR, BROKER, Identity

NOW = datetime(2026, 3, 1, 12, 0, 0, 250, tzinfo=timezone.utc)
DEVICE = Identity("device", "board-07")


@pytest.fixture
def authority() -> Authority:
    return certificates.make_authority("kitchen", days=3650, now=NOW)


def openssl(*arguments: object) -> str:
    """Runs openssl, and returns what it says."""
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def verify(tmp_path: Path, authority: Authority, certificate: x509.Certificate, *options: str) -> str:
    (tmp_path / "ca.pem").write_bytes(certificates.certificate_pem(authority.certificate))
    (tmp_path / "it.pem").write_bytes(certificates.certificate_pem(certificate))
    when = str(int(NOW.timestamp()) + 60)
    return openssl(
        "verify", "-x509_strict", "-attime", when, "-CAfile", tmp_path / "ca.pem", *options, tmp_path / "it.pem"
    )


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
    key = certificates.new_key("device").public_key()
    made = certificates.issue(authority, identity, key, days=30, now=NOW, hosts=["broker.local"])
    assert ": OK" in verify(tmp_path, authority, made, "-purpose", purpose)
    assert "unsuitable certificate purpose" in verify(tmp_path, authority, made, "-purpose", forbidden)
    assert certificates.common_name(made) == identity.common_name


def test_the_brokers_certificate_is_for_its_hosts(tmp_path: Path, authority: Authority) -> None:
    hosts = ["broker.local", "192.168.1.7", "fe80::1", "bücher.example"]
    made = certificates.issue(
        authority, BROKER, certificates.new_key("device").public_key(), days=30, now=NOW, hosts=hosts
    )
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
    made = certificates.issue(authority, DEVICE, certificates.new_key("device").public_key(), days=30, now=NOW)
    assert made.not_valid_after_utc == (NOW + timedelta(days=30)).replace(microsecond=0)
    assert made.not_valid_before_utc < NOW


def test_a_later_certificate_has_a_larger_number(authority: Authority) -> None:
    key = certificates.new_key("device").public_key()
    moments = [NOW + timedelta(microseconds=step) for step in range(1, 6)]
    numbers = [certificates.issue(authority, DEVICE, key, days=1, now=now).serial_number for now in moments]
    assert numbers == sorted(numbers)
    assert all(number.bit_length() < 160 for number in numbers)  # RFC 5280, 4.1.2.2: twenty octets


def test_an_authority_that_is_not_in_force_names_the_clock(authority: Authority) -> None:
    key = certificates.new_key("device").public_key()
    for now in (datetime(1970, 1, 2, tzinfo=timezone.utc), NOW + timedelta(days=4000)):
        with pytest.raises(ConfigError, match=rf"clock says {now:%Y-%m-%d %H:%M}: is the clock right"):
            certificates.issue(authority, DEVICE, key, days=1, now=now)
    with pytest.raises(ConfigError, match="give it at most 3639 days"):
        certificates.issue(authority, DEVICE, key, days=3645, now=NOW + timedelta(days=10))


@pytest.mark.parametrize("host", ["", "a b", "x" * 64 + ".local", "broker..local", "*", "mqtt://broker"])
def test_a_host_that_is_none(authority: Authority, host: str) -> None:
    with pytest.raises(ConfigError, match="is neither a host name nor an address"):
        certificates.issue(
            authority, BROKER, certificates.new_key("device").public_key(), days=1, now=NOW, hosts=[host]
        )


def test_a_revocation_list_is_what_openssl_goes_by(tmp_path: Path, authority: Authority) -> None:
    key = certificates.new_key("device").public_key()
    good, bad = (certificates.issue(authority, DEVICE, key, days=30, now=NOW) for _ in range(2))
    made = certificates.make_revocation_list(authority, {bad.serial_number: NOW}, number=7, now=NOW)
    (tmp_path / "crl.pem").write_bytes(certificates.certificate_pem(made))
    check = ("-crl_check", "-CRLfile", str(tmp_path / "crl.pem"))
    assert ": OK" in verify(tmp_path, authority, good, *check)
    assert "certificate revoked" in verify(tmp_path, authority, bad, *check)
    revoked, number = certificates.read_revocation_list(certificates.certificate_pem(made), "crl.pem")
    assert (list(revoked), number) == ([bad.serial_number], 7)


def request_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | dsa.DSAPrivateKey, name: str | None) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name is not None else [])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def test_a_request_becomes_a_certificate(tmp_path: Path, authority: Authority) -> None:
    key = certificates.new_key("device")
    public = certificates.key_of_request(certificates.make_request(key, DEVICE), DEVICE, "x.csr")
    assert public == key.public_key()
    made = subprocess.run(
        ["openssl", "req", "-new", "-newkey", "ed25519", "-nodes", "-subj", "/CN=board-07", "-keyout", tmp_path / "k"],
        capture_output=True,
        check=True,
    )
    theirs = certificates.key_of_request(made.stdout, DEVICE, "theirs.csr")
    issued = certificates.issue(authority, DEVICE, theirs, days=30, now=NOW)
    assert ": OK" in verify(tmp_path, authority, issued)


@pytest.mark.parametrize("name", [None, "board-08", "role:aggregator", "board-07 "])
def test_a_request_for_somebody_else(name: str | None) -> None:
    with pytest.raises(ConfigError, match=r"x\.csr: the request is for .*, not for 'board-07'"):
        certificates.key_of_request(request_of(ec.generate_private_key(ec.SECP256R1()), name), DEVICE, "x.csr")


def test_a_request_that_was_changed_on_the_way() -> None:
    made = x509.load_pem_x509_csr(certificates.make_request(certificates.new_key("device"), DEVICE))
    changed = bytearray(made.public_bytes(serialization.Encoding.DER))
    changed[changed.index(b"board-07") + 7] = ord("8")
    pem = x509.load_der_x509_csr(bytes(changed)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(ConfigError, match="not signed by the key in it"):
        certificates.key_of_request(pem, Identity("device", "board-08"), "x.csr")


@pytest.mark.parametrize("pem", [b"", b"no request", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"x" * 100_000])
def test_a_request_that_is_none(pem: bytes) -> None:
    with pytest.raises(ConfigError, match=r"x\.csr: (not a certificate signing request|a signing request has at most)"):
        certificates.key_of_request(pem, DEVICE, "x.csr")


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (rsa.generate_private_key(65537, 1024), "an RSA key of 1024 bits is too weak"),
        (ec.generate_private_key(ec.SECP192R1()), "the curve secp192r1 is too weak"),
        (dsa.generate_private_key(2048), "keys are elliptic curve"),
    ],
    ids=["rsa", "curve", "dsa"],
)
def test_a_weak_key(key: rsa.RSAPrivateKey, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        certificates.key_of_request(request_of(key, "board-07"), DEVICE, "x.csr")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (rsa.generate_private_key(65537, 2048), "an RSA key"),
        (ec.generate_private_key(ec.SECP384R1()), "a key on secp384r1"),
    ],
    ids=["rsa", "curve"],
)
def test_a_key_that_signs_no_messages_is_refused_to_whoever_says_something(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, kind: str
) -> None:
    for identity in (DEVICE, AGGREGATOR):
        with pytest.raises(ConfigError, match=rf"x\.csr: the request is for {kind}, and members sign"):
            certificates.key_of_request(request_of(key, identity.common_name), identity, "x.csr")
    for identity in (Identity("observer", "dashboard"), BROKER):
        found = certificates.key_of_request(request_of(key, identity.common_name), identity, "x.csr")
        assert found == key.public_key()


def test_keys_are_read_back_and_nothing_of_a_bad_one_is_told() -> None:
    key = certificates.new_key("device")
    pem = certificates.key_pem(key)
    assert certificates.read_key(pem, "k").public_key() == key.public_key()
    with pytest.raises(ConfigError) as caught:
        certificates.read_key(pem.replace(b"M", b"!"), "broken.key")
    assert str(caught.value) == "broken.key: not an unencrypted private key in PEM"
    other = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ConfigError, match="this is of another kind"):
        certificates.read_key(other, "other.key")
