"""The three PEM files of a connection, made into what TLS needs; and which of them is to blame where that fails."""

from __future__ import annotations

import ssl
from pathlib import Path

from edgefed.errors import ConfigError
from edgefed.files import check_private, in_shell

__all__ = ["make_tls_context"]

_CERTIFICATE, _PRIVATE_KEY = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"
_ENCRYPTED = (b"ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED")


def make_tls_context(
    ca: str | None, certificate: str | None, key: str | None, revoked: str | None = None
) -> ssl.SSLContext:
    """Returns what checks the broker's certificate and shows ours.

    Args:
        ca: file of the authority that signed the broker's certificate; None trusts the system's authorities.
        certificate: file of ours, where the broker wants one.
        key: file of its private key.
        revoked: file of the authority's revocation list, with which the broker's certificate has to be in order too.

    Raises:
        ConfigError: a file is missing or is not what its option says, others than its owner can read the key, or it is
            not the certificate's.
    """
    if ca is not None and _CERTIFICATE not in _read("tls_ca", ca, "it comes with `edgefed fleet enroll`"):
        raise ConfigError(f"tls_ca: {ca} holds no certificate in PEM: copy it again from the fleet's directory")
    if certificate is not None and key is not None:
        _check_ours(certificate, key)
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise ConfigError(f"tls_ca: the certificate in {ca} cannot be used: {error}") from None
    if revoked is not None:
        _read("tls_crl", revoked, "`edgefed fleet revoke` writes it into the fleet's directory")
        try:
            context.load_verify_locations(revoked)
        except ssl.SSLError as error:
            raise ConfigError(f"tls_crl: the revocation list in {revoked} cannot be used: {error}") from None
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    if certificate is not None and key is not None:
        try:
            context.load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            raise ConfigError(_why_not(certificate, key, error)) from None
    return context


def _check_ours(certificate: str, key: str) -> None:
    """Finds what OpenSSL has no words for, or would ask somebody at a terminal about."""
    not_enrolled = "is the device enrolled (`edgefed agent --enroll TOKEN`, or `edgefed fleet enroll`)?"
    if _CERTIFICATE not in _read("tls_certificate", certificate, not_enrolled):
        raise ConfigError(f"tls_certificate: {certificate} holds no certificate in PEM: copy it again")
    secret = _read("tls_key", key, "the key is where it was made; with a certificate for it, it goes to the same place")
    check_private(Path(key))
    if _PRIVATE_KEY not in secret:
        raise ConfigError(f"tls_key: {key} holds no private key in PEM: copy it again")
    if any(mark in secret for mark in _ENCRYPTED):
        raise ConfigError(
            f"tls_key: {key} is encrypted, and nobody is there to type its passphrase: "
            f"`openssl pkey -in {in_shell(key)}` writes it without one, into a file that only its owner may read"
        )


def _read(option: str, file: str, remedy: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{option}: there is no file {file}: {remedy}") from None
    except OSError as error:
        raise ConfigError(f"{option}: {file} cannot be read: {error.strerror}") from error


def _why_not(certificate: str, key: str, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: {key} is not the key of {certificate}: copy both again, from one place"
    return f"tls_certificate and tls_key: {certificate} and {key} cannot be used: {error}"
