"""Revocation lists as openssl reads them, and lists that are none."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import ConfigError
from edgefed.security import certificates, keys
from edgefed.security.identities import Identity
from edgefed.security.revocation_lists import make_revocation_list, read_revocation_list
from tests.security.openssl import NOW, verify

DEVICE = Identity("device", "board-07")
AUTHORITY = certificates.make_authority("kitchen", days=3650, now=NOW)
LIST = make_revocation_list(AUTHORITY, {17: NOW}, number=3, now=NOW).decode()


def test_a_revocation_list_is_what_openssl_goes_by(tmp_path: Path) -> None:
    key = keys.new_key("device").public_key()
    good, bad = (certificates.issue(AUTHORITY, DEVICE, key, days=30, now=NOW) for _ in range(2))
    made = make_revocation_list(AUTHORITY, {bad.serial_number: NOW}, number=7, now=NOW)
    (tmp_path / "crl.pem").write_bytes(made)
    check = ("-crl_check", "-CRLfile", str(tmp_path / "crl.pem"))
    assert ": OK" in verify(tmp_path, AUTHORITY, good, *check)
    assert "certificate revoked" in verify(tmp_path, AUTHORITY, bad, *check)
    revoked, number = read_revocation_list(made, "crl.pem")
    assert (list(revoked), number) == ([bad.serial_number], 7)


@given(data=st.data())
def test_any_byte_of_a_list_that_is_changed_makes_it_none(data: st.DataObject) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(LIST.replace("X509 CRL", "CERTIFICATE")))
    der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))
    changed = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "X509 CRL").encode()
    try:
        since, number = read_revocation_list(changed, "crl.pem", authority=AUTHORITY.certificate)
    except ConfigError:
        return
    assert (set(since), number) == ({17}, 3)  # another way to write the same


@pytest.mark.parametrize("version", [b"\x02\x01\x00", b"\x02\x01\x05"])
def test_a_list_of_a_version_that_there_is_none_of(version: bytes) -> None:
    der = ssl.PEM_cert_to_DER_cert(LIST.replace("X509 CRL", "CERTIFICATE"))
    changed = ssl.DER_cert_to_PEM_cert(der.replace(b"\x02\x01\x01", version, 1)).replace("CERTIFICATE", "X509 CRL")
    with pytest.raises(ConfigError, match=r"crl\.pem: not a revocation list in PEM: . is not a valid CRL version"):
        read_revocation_list(changed.encode(), "crl.pem")
