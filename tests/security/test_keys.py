"""Keys as another implementation reads them (openssl), and what is told of a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from edgefed.errors import ConfigError
from edgefed.security import keys
from edgefed.security.identities import Role
from tests.security.openssl import openssl


def test_keys_are_read_back_and_nothing_of_a_bad_one_is_told() -> None:
    key = keys.new_key("device")
    pem = keys.key_pem(key)
    assert keys.read_key(pem, "k").public_key() == key.public_key()
    with pytest.raises(ConfigError) as caught:
        keys.read_key(pem.replace(b"M", b"!"), "broken.key")
    assert str(caught.value) == "broken.key: not an unencrypted private key in PEM"
    other = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ConfigError, match="this is of another kind"):
        keys.read_key(other, "other.key")


@pytest.mark.parametrize(("role", "kind"), [("device", "ED25519"), ("aggregator", "ED25519"), ("broker", "prime256v1")])
def test_openssl_reads_the_key_of_a_role(tmp_path: Path, role: Role, kind: str) -> None:
    (tmp_path / "key.pem").write_bytes(keys.key_pem(keys.new_key(role)))
    assert kind in openssl("pkey", "-noout", "-text", "-in", tmp_path / "key.pem")


def test_a_fingerprint_is_the_hash_that_openssl_finds(tmp_path: Path) -> None:
    key = keys.new_key("device")
    (tmp_path / "key.pem").write_bytes(keys.key_pem(key))
    openssl("pkey", "-in", tmp_path / "key.pem", "-pubout", "-outform", "DER", "-out", tmp_path / "public.der")
    assert openssl("dgst", "-sha256", "-r", tmp_path / "public.der").split()[0] == keys.fingerprint(key.public_key())
