"""Files of a connection that cannot be used: which of them, why, and what to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from edgefed.errors import ConfigError
from edgefed.security import certificates, keys
from edgefed.security.identities import Identity
from edgefed.transport.tls_files import make_tls_context

CA, CERTIFICATE, KEY = "ca.pem", "certificate.pem", "key.pem"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    now = datetime.now(timezone.utc)
    authority = certificates.make_authority("test", days=100, now=now)
    key = keys.new_key("device")
    made = certificates.issue(authority, Identity("device", "a"), key.public_key(), days=9, now=now)
    (tmp_path / CA).write_bytes(certificates.certificate_pem(authority.certificate))
    (tmp_path / CERTIFICATE).write_bytes(certificates.certificate_pem(made))
    (tmp_path / KEY).touch(mode=0o600)
    (tmp_path / KEY).write_bytes(keys.key_pem(key))
    return tmp_path


def refusal(place: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        make_tls_context(*(str(place / name) for name in (CA, CERTIFICATE, KEY)))
    return str(refused.value)


def test_good_files(files: Path) -> None:
    context = make_tls_context(str(files / CA), str(files / CERTIFICATE), str(files / KEY))
    assert [one["subject"] for one in context.get_ca_certs()]
    assert make_tls_context(None, None, None).check_hostname


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (CA, "tls_ca: there is no file {}: it comes with"),
        (CERTIFICATE, "tls_certificate: there is no file {}: is the device enrolled"),
        (KEY, "tls_key: there is no file {}: the key is where it was made"),
    ],
)
def test_a_file_that_is_not_there(files: Path, name: str, said: str) -> None:
    (files / name).unlink()
    assert refusal(files).startswith(said.format(files / name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (CA, "tls_ca: {} holds no certificate"),
        (CERTIFICATE, "tls_certificate: {} holds no certificate"),
        (KEY, "tls_key: {} holds no private key"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256))])
def test_a_file_that_is_something_else(files: Path, name: str, said: str, content: bytes) -> None:
    (files / name).write_bytes(content)
    assert refusal(files).startswith(said.format(files / name))


@pytest.mark.parametrize("name", [CA, CERTIFICATE, KEY])
def test_a_file_that_is_damaged(files: Path, name: str) -> None:
    lines = (files / name).read_bytes().splitlines()
    (files / name).write_bytes(b"\n".join([lines[0], b"AAAA", *lines[2:]]))
    assert str(files / name) in refusal(files)


@pytest.mark.parametrize("name", [CA, CERTIFICATE, KEY])
def test_a_directory(files: Path, name: str) -> None:
    (files / name).unlink()
    (files / name).mkdir()
    assert f"{files / name} cannot be read: Is a directory" in refusal(files)


def test_certificate_and_key_that_were_swapped(files: Path) -> None:
    certificate, key = (files / CERTIFICATE).read_bytes(), (files / KEY).read_bytes()
    (files / CERTIFICATE).write_bytes(key)
    (files / KEY).write_bytes(certificate)
    assert refusal(files).startswith(f"tls_certificate: {files / CERTIFICATE} holds no certificate")


def test_another_key(files: Path) -> None:
    (files / KEY).write_bytes(keys.key_pem(keys.new_key("device")))
    assert refusal(files) == (
        f"tls_key: {files / KEY} is not the key of {files / CERTIFICATE}: copy both again, from one place"
    )


def test_a_key_that_others_can_read(files: Path) -> None:
    (files / KEY).chmod(0o604)
    assert "its mode 0604 lets others than its owner at it" in refusal(files)


@pytest.mark.parametrize("command", [["pkey", "-aes256"], ["ec", "-aes256"]], ids=["PKCS 8", "traditional"])
def test_an_encrypted_key_is_not_asked_about(files: Path, command: list[str]) -> None:
    plain = files / "plain.pem"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", plain],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        ["openssl", *command, "-in", plain, "-passout", "pass:word", "-out", files / KEY],
        check=True,
        capture_output=True,
    )
    assert "is encrypted, and nobody is there to type" in refusal(files)


def test_whatever_the_case_nothing_of_a_key_is_told(files: Path) -> None:
    secret = (files / KEY).read_text().splitlines()[1]
    cases: list[Callable[[], object]] = [
        (files / CERTIFICATE).unlink,
        lambda: (files / CERTIFICATE).write_text(secret),
        lambda: (files / KEY).write_text(secret),
    ]
    for spoil in cases:
        spoil()
        assert secret not in refusal(files)
