"""Keys: which are made, how they are kept, what they are known by, and which are good enough.

The authority and the broker have keys on P-256, which whatever speaks TLS 1.2 knows; members have Ed25519 keys, with
which they sign their messages too (`security.signatures`). Pure: no file, no clock.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from edgefed.errors import ConfigError
from edgefed.security.identities import Role

__all__ = ["PrivateKey", "PublicKey", "check_strong", "fingerprint", "key_pem", "new_key", "read_key", "signs_messages"]

_MIN_RSA_BITS = 2048

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


def new_key(role: Role) -> PrivateKey:
    """Returns a fresh private key for somebody of a role."""
    return ec.generate_private_key(ec.SECP256R1()) if role == "broker" else ed25519.Ed25519PrivateKey.generate()


def key_pem(key: PrivateKey) -> bytes:
    """Returns a private key as PEM (PKCS 8), not encrypted: devices start without anybody to type a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


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


def fingerprint(key: PublicKey) -> str:
    """Returns what a public key is known by: the sha256 of its DER (SubjectPublicKeyInfo), as 64 hexadecimal digits."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def signs_messages(key: object) -> bool:
    """Whether messages can be signed with a key, private or public: see `security.signatures`."""
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey)


def check_strong(key: object, where: str) -> PublicKey:
    """Returns a public key that the authority may issue a certificate for.

    Raises:
        ConfigError: the key is weak, or of a kind that edgefed does not know.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        raise ConfigError(f"{where}: keys are elliptic curve (P-256), Ed25519 or RSA, not {type(key).__name__}")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        raise ConfigError(f"{where}: an RSA key of {key.key_size} bits is too weak: at least {_MIN_RSA_BITS}")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < ec.SECP256R1.key_size:
        raise ConfigError(f"{where}: the curve {key.curve.name} is too weak: take P-256")
    return key
