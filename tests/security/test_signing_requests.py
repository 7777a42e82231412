"""Signing requests, of edgefed's own and openssl's making, and which are refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import NameOID

from edgefed.errors import ConfigError
from edgefed.security import certificates, keys
from edgefed.security.identities import AGGREGATOR, BROKER, Identity
from edgefed.security.signing_requests import key_of_request, make_request
from tests.security.openssl import NOW, verify

DEVICE = Identity("device", "board-07")
AUTHORITY = certificates.make_authority("kitchen", days=3650, now=NOW)


def request_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | dsa.DSAPrivateKey, name: str | None) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name is not None else [])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def test_a_request_becomes_a_certificate(tmp_path: Path) -> None:
    key = keys.new_key("device")
    public = key_of_request(make_request(key, DEVICE), DEVICE, "x.csr")
    assert public == key.public_key()
    made = subprocess.run(
        ["openssl", "req", "-new", "-newkey", "ed25519", "-nodes", "-subj", "/CN=board-07", "-keyout", tmp_path / "k"],
        capture_output=True,
        check=True,
    )
    theirs = key_of_request(made.stdout, DEVICE, "theirs.csr")
    issued = certificates.issue(AUTHORITY, DEVICE, theirs, days=30, now=NOW)
    assert ": OK" in verify(tmp_path, AUTHORITY, issued)


@pytest.mark.parametrize("name", [None, "board-08", "role:aggregator", "board-07 "])
def test_a_request_for_somebody_else(name: str | None) -> None:
    with pytest.raises(ConfigError, match=r"x\.csr: the request is for .*, not for 'board-07'"):
        key_of_request(request_of(ec.generate_private_key(ec.SECP256R1()), name), DEVICE, "x.csr")


def test_a_request_that_was_changed_on_the_way() -> None:
    made = x509.load_pem_x509_csr(make_request(keys.new_key("device"), DEVICE))
    changed = bytearray(made.public_bytes(serialization.Encoding.DER))
    changed[changed.index(b"board-07") + 7] = ord("8")
    pem = x509.load_der_x509_csr(bytes(changed)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(ConfigError, match="not signed by the key in it"):
        key_of_request(pem, Identity("device", "board-08"), "x.csr")


@pytest.mark.parametrize("pem", [b"", b"no request", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"x" * 100_000])
def test_a_request_that_is_none(pem: bytes) -> None:
    with pytest.raises(ConfigError, match=r"x\.csr: (not a certificate signing request|a signing request has at most)"):
        key_of_request(pem, DEVICE, "x.csr")


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
        key_of_request(request_of(key, "board-07"), DEVICE, "x.csr")


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
            key_of_request(request_of(key, identity.common_name), identity, "x.csr")
    for identity in (Identity("observer", "dashboard"), BROKER):
        found = key_of_request(request_of(key, identity.common_name), identity, "x.csr")
        assert found == key.public_key()
