"""Certificates that a board could not use are told from those that it can, before they are on it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from edgefed.errors import ConfigError
from edgefed.flashing.credentials import Credentials, read_credentials
from edgefed.security.certificates import Authority, certificate_pem, issue, make_authority
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.keys import key_pem, new_key

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
BOARD = Identity("device", "board-07")


@dataclass(frozen=True)
class Files:
    """Where a board's three files lie."""

    directory: Path

    def read(self, device: str = "board-07", *, signed: bool = False, now: datetime = NOW) -> Credentials:
        ca, certificate, key = (self.directory / name for name in ("ca.pem", "certificate.pem", "key.pem"))
        return read_credentials(device, ca=ca, certificate=certificate, key=key, signed=signed, now=now)

    def write(self, name: str, content: bytes) -> None:
        (self.directory / name).write_bytes(content)
        (self.directory / name).chmod(0o600)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("kitchen", days=100, now=NOW)


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> Files:
    made, key = Files(tmp_path), new_key("device")
    made.write("ca.pem", certificate_pem(authority.certificate))
    made.write("certificate.pem", certificate_pem(issue(authority, BOARD, key.public_key(), days=30, now=NOW)))
    made.write("key.pem", key_pem(key))
    return made


def test_what_fits_is_returned_as_it_is(files: Files, authority: Authority) -> None:
    read = files.read(signed=True)
    contents = [(files.directory / name).read_bytes() for name in ("ca.pem", "certificate.pem", "key.pem")]
    assert [read.ca, read.certificate, read.key] == contents
    other = make_authority("cellar", days=1, now=NOW - timedelta(days=50))
    files.write("ca.pem", certificate_pem(other.certificate) + certificate_pem(authority.certificate))
    assert files.read().certificate == contents[1], "signed by the one of them that is in force"


def test_what_is_not_given_is_not_asked_for(files: Files) -> None:
    nothing = read_credentials("", ca=None, certificate=None, key=None, signed=False, now=NOW)
    assert nothing == Credentials()
    ca = files.directory / "ca.pem"
    read = read_credentials("board-07", ca=ca, certificate=None, key=None, signed=False, now=NOW)
    assert read == Credentials(ca=ca.read_bytes())


@pytest.mark.parametrize("identity", [Identity("device", "board-08"), AGGREGATOR])
def test_somebody_elses_certificate(files: Files, authority: Authority, identity: Identity) -> None:
    key = new_key("device")
    files.write("certificate.pem", certificate_pem(issue(authority, identity, key.public_key(), days=30, now=NOW)))
    files.write("key.pem", key_pem(key))
    with pytest.raises(
        ConfigError, match=rf"certificate\.pem: is for {identity.common_name}, and the board will be board-07: give it"
    ):
        files.read()


def test_an_authority_that_did_not_sign_the_certificate(files: Files) -> None:
    files.write("ca.pem", certificate_pem(make_authority("kitchen", days=100, now=NOW).certificate))
    with pytest.raises(ConfigError, match=r"certificate\.pem: was not signed by the authority in .*ca\.pem: take both"):
        files.read()


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (31, r"certificate\.pem: has expired on 2026-03-31 12:00 UTC: .* fleet rotate board-07"),
        (101, r"ca\.pem: the authority has expired on 2026-06-09 12:00 UTC"),
        (-1, r"ca\.pem: the authority counts only from 2026-03-01 11:00 UTC, and this machine's clock says 2026-02-28"),
    ],
)
def test_what_is_not_in_force(files: Files, days: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        files.read(now=NOW + timedelta(days=days))


def test_another_key(files: Files) -> None:
    files.write("key.pem", key_pem(new_key("device")))
    with pytest.raises(ConfigError, match=r"key\.pem: is not the key of .*certificate\.pem: take both"):
        files.read()
    files.write("key.pem", key_pem(new_key("broker")))
    with pytest.raises(ConfigError, match=r"key\.pem: is not the key of"):
        files.read()


def test_a_key_that_others_can_read(files: Files) -> None:
    (files.directory / "key.pem").chmod(0o640)
    with pytest.raises(ConfigError, match=r"key\.pem holds a secret, and its mode 0640 .* chmod 600"):
        files.read()


def test_a_key_with_a_passphrase_and_what_is_no_key(files: Files) -> None:
    protected = new_key("device").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )
    for content in (protected, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", os.urandom(50)):
        files.write("key.pem", content)
        with pytest.raises(ConfigError, match=r"key\.pem: is not a private key without a passphrase in PEM format$"):
            files.read()


def test_an_rsa_key_is_good_for_tls_and_not_for_signing(files: Files, authority: Authority) -> None:
    key = rsa.generate_private_key(65537, 2048)
    files.write("certificate.pem", certificate_pem(issue(authority, BOARD, key.public_key(), days=30, now=NOW)))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    files.write("key.pem", key.private_bytes(encoding, form, serialization.NoEncryption()))
    assert files.read().key is not None
    with pytest.raises(ConfigError, match=r"key\.pem: cannot sign messages"):
        files.read(signed=True)


@pytest.mark.parametrize("name", ["ca.pem", "certificate.pem"])
def test_what_is_no_certificate(files: Files, name: str) -> None:
    for content in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        files.write(name, content)
        with pytest.raises(ConfigError, match=f"{name}: is not a certificate in PEM format"):
            files.read()
    (files.directory / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}: cannot be read: No such file"):
        files.read()
