"""A fleet's certificates: its authority, what the authority issues, and its list of what it takes back.

The authority and the broker have keys on P-256, which whatever speaks TLS 1.2 knows; members have Ed25519 keys, with
which they sign their messages too (`security.signatures`). Pure: no file, no clock.

Every certificate names its one use (RFC 5280, extended key usage), so a device's certificate does not pass as the
broker's: a device cannot stand between another device and the broker.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgefed.errors import ConfigError
from edgefed.security.identities import Identity, Role

__all__ = [
    "Authority",
    "PrivateKey",
    "PublicKey",
    "certificate_pem",
    "common_name",
    "fingerprint",
    "fleet_of",
    "hosts_of",
    "is_issued_by",
    "issue",
    "key_of_request",
    "key_pem",
    "make_authority",
    "make_request",
    "make_revocation_list",
    "new_key",
    "read_certificate",
    "read_key",
    "read_revocation_list",
    "signs_messages",
]

_BACKDATED = timedelta(hours=1)
"""Boards without a battery-backed clock wake up a little in the past."""

_MAX_REQUEST_BYTES = 64 * 1024
_MIN_RSA_BITS = 2048
_SIGNING = ("device", "aggregator")
"""Whoever says something; the keys of others are for TLS only."""

_HOST = re.compile(r"(?=.{1,253}\Z)\w(?:[\w-]*\w)?(?:\.\w(?:[\w-]*\w)?)*", re.ASCII)

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Authority:
    """What a fleet's certificates are signed with.

    Attributes:
        certificate: its own, which everybody in the fleet trusts.
        key: its private key.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_key(role: Role) -> PrivateKey:
    """Returns a fresh private key for somebody of a role."""
    return ec.generate_private_key(ec.SECP256R1()) if role == "broker" else ed25519.Ed25519PrivateKey.generate()


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


def make_request(key: PrivateKey, identity: Identity) -> bytes:
    """Returns a certificate signing request (PEM): what leaves a device instead of its key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.common_name)])
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()  # Ed25519 has its own
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, digest)
    return request.public_bytes(serialization.Encoding.PEM)


def key_of_request(pem: bytes, identity: Identity, where: str) -> PublicKey:
    """Returns the public key of a signing request; nothing else in it counts.

    Args:
        pem: the request.
        identity: whom it has to be for.
        where: its file, for messages.

    Raises:
        ConfigError: it is no request, is not signed by its own key, is for somebody else, or has a key that is weak or
            of a kind that whoever it is for cannot use.
    """
    if len(pem) > _MAX_REQUEST_BYTES:
        raise ConfigError(f"{where}: a signing request has at most {_MAX_REQUEST_BYTES} bytes, this has {len(pem)}")
    try:
        request = x509.load_pem_x509_csr(pem)
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key, signed = request.public_key(), request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
        raise ConfigError(f"{where}: not a certificate signing request in PEM: {error}") from None
    if not signed:
        raise ConfigError(f"{where}: the request is not signed by the key in it: it was changed on the way")
    if [str(name.value) for name in names] != [identity.common_name]:
        found = ", ".join(repr(str(name.value)) for name in names) or "nobody"
        raise ConfigError(f"{where}: the request is for {found}, not for {identity.common_name!r}")
    return _usable(key, identity, where)


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


def make_revocation_list(
    authority: Authority, revoked: Mapping[int, datetime], *, number: int, now: datetime
) -> x509.CertificateRevocationList:
    """Returns the list of what the authority takes back.

    It is good until the authority itself ends: a broker turns everybody away when its list is past its date, and nobody
    would renew it in time on a site without an operator.

    Args:
        authority: signs it.
        revoked: serial numbers, and since when they count no more.
        number: of this list; each is larger than the one before it.
        now: in UTC, with its zone.
    """
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(min(now, authority.certificate.not_valid_after_utc - timedelta(seconds=1)))
        .next_update(authority.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    for serial, since in revoked.items():
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        )
    return builder.sign(authority.key, hashes.SHA256())


def read_revocation_list(
    pem: bytes, where: str, *, authority: x509.Certificate | None = None
) -> tuple[dict[int, datetime], int]:
    """Returns what a list takes back, as serial number and since when, and the list's own number.

    Args:
        pem: the list.
        where: its file, for messages.
        authority: who has to have signed it; None where the file itself is trusted.

    Raises:
        ConfigError: there is no list in the file, or it is not the authority's.
    """
    try:
        found = x509.load_pem_x509_crl(pem)
        is_ours = authority is None or _is_signed_by(found, authority)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        since = {entry.serial_number: entry.revocation_date_utc for entry in found}
    except (
        ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, x509.ExtensionNotFound
    ) as error:  # fmt: skip
        raise ConfigError(f"{where}: not a revocation list in PEM: {error}") from None
    if not is_ours:
        raise ConfigError(f"{where}: the list is not of the fleet's authority: it is another fleet's, or was changed")
    return since, number


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


def fingerprint(key: PublicKey) -> str:
    """Returns what a public key is known by: the sha256 of its DER (SubjectPublicKeyInfo), as 64 hexadecimal digits."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def certificate_pem(certificate: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """Returns a certificate, or a revocation list, as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: PrivateKey) -> bytes:
    """Returns a private key as PEM (PKCS 8), not encrypted: devices start without anybody to type a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_certificate(pem: bytes, where: str) -> x509.Certificate:
    """Returns the certificate in a PEM file.

    Raises:
        ConfigError: there is none in it.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigError(f"{where}: not a certificate in PEM: {error}") from None


def read_key(pem: bytes, where: str) -> PrivateKey:
    """Returns the private key in a PEM file.

    Raises:
        ConfigError: there is none in it, or one of another kind than edgefed makes.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{where}: not an unencrypted private key in PEM") from None  # nothing of it in a message
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{where}: an Ed25519 or elliptic curve key is expected, this is of another kind")
    return key


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority has signed a certificate; whether either is in force is not asked."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_signed_by(revoked: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = authority.public_key()
    # Nobody signs a list with a key of another kind.
    return isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) and revoked.is_signature_valid(key)


def signs_messages(key: object) -> bool:
    """Whether messages can be signed with a key, private or public: see `security.signatures`."""
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey)


def _usable(key: object, identity: Identity, where: str) -> PublicKey:
    strong = _strong(key, where)
    if identity.role in _SIGNING and not signs_messages(strong):
        kind = f"a key on {strong.curve.name}" if isinstance(strong, ec.EllipticCurvePublicKey) else "an RSA key"
        raise ConfigError(
            f"{where}: the request is for {kind}, and members sign their messages ([broker] signed) with Ed25519 or "
            "P-256 keys: make one (openssl genpkey -algorithm ed25519) and a request for it"
        )
    return strong


def _strong(key: object, where: str) -> PublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        raise ConfigError(f"{where}: keys are elliptic curve (P-256), Ed25519 or RSA, not {type(key).__name__}")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        raise ConfigError(f"{where}: an RSA key of {key.key_size} bits is too weak: at least {_MIN_RSA_BITS}")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < ec.SECP256R1.key_size:
        raise ConfigError(f"{where}: the curve {key.curve.name} is too weak: take P-256")
    return key


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
