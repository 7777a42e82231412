"""Signing requests: how a key gets a certificate without leaving the machine that it was made on."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from edgefed.errors import ConfigError
from edgefed.security.identities import Identity
from edgefed.security.keys import PrivateKey, PublicKey, check_strong, signs_messages

__all__ = ["key_of_request", "make_request"]

_MAX_REQUEST_BYTES = 64 * 1024
_SIGNING = ("device", "aggregator")
"""Whoever says something; the keys of others are for TLS only."""


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


def _usable(key: object, identity: Identity, where: str) -> PublicKey:
    strong = check_strong(key, where)
    if identity.role in _SIGNING and not signs_messages(strong):
        kind = f"a key on {strong.curve.name}" if isinstance(strong, ec.EllipticCurvePublicKey) else "an RSA key"
        raise ConfigError(
            f"{where}: the request is for {kind}, and members sign their messages ([broker] signed) with Ed25519 or "
            "P-256 keys: make one (openssl genpkey -algorithm ed25519) and a request for it"
        )
    return strong
