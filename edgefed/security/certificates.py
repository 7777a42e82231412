"""A fleet's certificates: its authority, what the authority issues, and what a certificate says.

Pure: no file, no clock.

Every certificate names its one use (RFC 5280, extended key usage), so a device's certificate does not pass as the
broker's: a device cannot stand between another device and the broker.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgefed.errors import ConfigError
from edgefed.security.identities import Identity
from edgefed.security.keys import PublicKey

__all__ = [
    "Authority",
    "certificate_pem",
    "common_name",
    "fleet_of",
    "hosts_of",
    "is_issued_by",
    "issue",
    "make_authority",
    "read_certificate",
]

_BACKDATED = timedelta(hours=1)
"""Boards without a battery-backed clock wake up a little in the past."""

_HOST = re.compile(r"(?=.{1,253}\Z)\w(?:[\w-]*\w)?(?:\.\w(?:[\w-]*\w)?)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Authority:
    """What a fleet's certificates are signed with.

    Attributes:
        certificate: its own, which everybody in the fleet trusts.
        key: its private key.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(fleet: str, *, days: int, now: datetime) -> Authority:
    """Returns a fresh authority, which may sign certificates and revocation lists but no further authority.

    Args:
        fleet: whose it is; the authority's certificate says so as its organization.
        days: lifetime from now.
        now: in UTC, with its zone.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
            x509.NameAttribute(NameOID.COMMON_NAME, "edgefed authority"),
        ]
    )
    builder = (
        _begin(name, name, key.public_key(), now=now, begins=now - _BACKDATED, ends=now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Authority,
    identity: Identity,
    key: PublicKey,
    *,
    days: int,
    now: datetime,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """Returns a certificate for somebody's public key.

    Args:
        authority: signs it.
        identity: whose it is; the broker's is for servers, all others are for clients.
        key: the public key.
        days: lifetime from now.
        now: in UTC, with its zone.
        hosts: names and addresses under which the broker is reached; for the broker only.

    Raises:
        ConfigError: the authority is not in force, ends before the certificate would, or a host is no name or address.
    """
    until = now + timedelta(days=days)
    _check_in_force(authority, now, until)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.common_name)])
    is_server = identity.role == "broker"
    use = ExtendedKeyUsageOID.SERVER_AUTH if is_server else ExtendedKeyUsageOID.CLIENT_AUTH
    names = [_alternative_name(host) for host in hosts] if is_server else []
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    begins = max(now - _BACKDATED, authority.certificate.not_valid_before_utc)
    builder = (
        _begin(subject, authority.certificate.subject, key, now=now, begins=begins, ends=until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def fleet_of(certificate: x509.Certificate) -> str:
    """Returns which fleet an authority's certificate is for; empty where it is no authority's of ours."""
    names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Returns the host names and addresses that a broker's certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def common_name(certificate: x509.Certificate) -> str:
    """Returns whom a certificate names; empty where it names nobody or several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Returns a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def read_certificate(pem: bytes, where: str) -> x509.Certificate:
    """Returns the certificate in a PEM file.

    Raises:
        ConfigError: there is none in it.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigError(f"{where}: not a certificate in PEM: {error}") from None


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority has signed a certificate; whether either is in force is not asked."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _serial_number(now: datetime) -> int:
    """Returns a number that is larger for a later certificate, and that nobody can foretell."""
    return int(now.timestamp() * 1e6) << 80 | secrets.randbits(80)


def _begin(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, *, now: datetime, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(_serial_number(now))
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _check_in_force(authority: Authority, now: datetime, until: datetime) -> None:
    begins, ends = authority.certificate.not_valid_before_utc, authority.certificate.not_valid_after_utc
    if not begins <= now < ends:
        raise ConfigError(
            f"the fleet's authority is in force from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, and this "
            f"machine's clock says {now:%Y-%m-%d %H:%M}: is the clock right?"
        )
    if until > ends:
        raise ConfigError(
            f"the fleet's authority ends on {ends:%Y-%m-%d}, before the certificate would on {until:%Y-%m-%d}: "
            f"give it at most {(ends - now).days} days"
        )


def _alternative_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    with contextlib.suppress(ValueError):
        name = host.encode("idna").decode("ascii")
        if _HOST.fullmatch(name):
            return x509.DNSName(name)
    raise ConfigError(f"broker host {host!r} is neither a host name nor an address")
