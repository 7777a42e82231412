"""A board's certificate, its key and its authority, read where they can still be put right: before they are on it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from edgefed.errors import ConfigError
from edgefed.files import check_private
from edgefed.security.certificates import common_name, is_issued_by
from edgefed.security.keys import signs_messages

__all__ = ["Credentials", "read_credentials"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a board is given to be known by, as PEM.

    Attributes:
        ca: the authority; None where TLS is off, or a token brings it.
        certificate: the board's own; None where it has none, or gets it by a token.
        key: of that certificate.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


def read_credentials(
    device: str, *, ca: Path | None, certificate: Path | None, key: Path | None, signed: bool, now: datetime
) -> Credentials:
    """Returns the content of the files, once it is known that the board could use them.

    Args:
        device: the board's id in the fleet.
        ca: the authority's certificate, or several of which one has signed the board's.
        certificate: the board's own, which needs `ca` and `key`.
        key: of that certificate.
        signed: the board signs what it says.
        now: in UTC, with its zone.

    Raises:
        ConfigError: a file cannot be read or is not what it should be, is for another board or of another fleet, does
            not fit the others, is not in force, or is a key that others can read.
    """
    if ca is None:
        return Credentials()
    ca_pem, authorities = _certificates(ca)
    in_force = [authority for authority in authorities if _why_not_in_force(authority, now) == ""]
    if not in_force:
        why = _why_not_in_force(authorities[0], now)
        raise ConfigError(f"{ca}: the authority {why}: if the clock is right, take the fleet's present one")
    if certificate is None or key is None:
        return Credentials(ca=ca_pem)
    certificate_pem, (ours, *_) = _certificates(certificate)
    name, again = common_name(ours), f"`edgefed fleet rotate {device}` makes a new one"
    if name != device:
        raise ConfigError(
            f"{certificate}: is for {name or 'nobody'}, and the board will be {device}: give it its own certificate "
            "and key (`edgefed fleet enroll` makes them)"
        )
    if not any(is_issued_by(ours, authority) for authority in in_force):
        raise ConfigError(
            f"{certificate}: was not signed by the authority in {ca}: take both from the same fleet's directory"
        )
    if why := _why_not_in_force(ours, now):
        raise ConfigError(f"{certificate}: {why}: if the clock is right, {again}")
    key_pem, secret = _key(key)
    if not _fit(secret, ours):
        raise ConfigError(f"{key}: is not the key of {certificate}: take both from the same place")
    if signed and not signs_messages(secret):
        raise ConfigError(f"{key}: cannot sign messages, which takes an Ed25519 or P-256 key: {again}, with its key")
    return Credentials(ca=ca_pem, certificate=certificate_pem, key=key_pem)


def _certificates(file: Path) -> tuple[bytes, list[x509.Certificate]]:
    """Returns a file's content and the certificates in it, of which there is at least one."""
    pem = _content(file)
    try:
        return pem, x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigError(f"{file}: is not a certificate in PEM format: {error}") from None


def _key(file: Path) -> tuple[bytes, PrivateKeyTypes]:
    """Returns a file's content and the key in it: of any kind, as TLS takes more of them than edgefed makes."""
    pem = _content(file)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # nothing of it in a message
        raise ConfigError(f"{file}: is not a private key without a passphrase in PEM format") from None
    check_private(file)
    return pem, key


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error


def _why_not_in_force(certificate: x509.Certificate, now: datetime) -> str:
    """Returns why a certificate does not count now; "" where it does."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= ends:
        return f"has expired on {ends:%Y-%m-%d %H:%M} UTC"
    if now < begins:
        return f"counts only from {begins:%Y-%m-%d %H:%M} UTC, and this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
    return ""


def _fit(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    try:
        return key.public_key() == certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):  # the certificate's key is of a kind that nobody here knows
        return False
