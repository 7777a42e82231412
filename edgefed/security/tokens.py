"""Claim tokens: what an operator gives a board, once, so that it can ask over the network to be made a member.

A token is 32 random bytes. They are the seed of an Ed25519 key (RFC 8032): the fleet's directory keeps only the public
key, out of which nobody gets the token, and the board proves that it has the token by a signature over what it asks.
So the token never travels, and a copy of what the directory keeps of it is of no use.

The token's file has all that a board needs besides its agent.toml: the fleet's authority, whom it is to trust, and the
certificate and key of a claim, with which the broker lets it speak on that claim's topics and on no others.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgefed.errors import ConfigError
from edgefed.files import check_private, sync_directory
from edgefed.protocol.messages.claims import Claim
from edgefed.protocol.topics import check_id
from edgefed.security.certificates import read_certificate

__all__ = [
    "TokenFile", "check_pattern", "is_proven", "make_claim", "matches", "new_secret", "read_token", "request_id",
    "token_id",
    "verifier_of", "write_token",
]  # fmt: skip

_DOMAIN = b"edgefed claim 1"
_SECRET_BYTES = 32
_PATTERN = re.compile(r"[a-z0-9*?-]{1,64}\Z")


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    fleet: str
    claim: str
    device: str
    expires: datetime
    secret: str
    ca: str
    certificate: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """A token, and what a board needs to use it.

    Attributes:
        fleet: whose member the board will be.
        claim: on whose topics it asks.
        device: the id that it may ask for, or a pattern of it.
        expires: until when the token can be used.
        secret: the token.
        ca: the certificate of the fleet's authority, in PEM.
        certificate: the claim's, in PEM.
        key: the claim's private key, in PEM.
    """

    fleet: str
    claim: str
    device: str
    expires: datetime
    secret: bytes = field(repr=False)
    ca: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """The name under which the token is spoken of; the secret cannot be told from it."""
        return token_id(verifier_of(self.secret))


def new_secret() -> bytes:
    """Returns a fresh token."""
    return os.urandom(_SECRET_BYTES)


def verifier_of(secret: bytes) -> bytes:
    """Returns what proofs made with a token are checked with: a public key, 32 bytes."""
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def token_id(verifier: bytes) -> str:
    """Returns the name under which a token is spoken of: 32 hexadecimal digits."""
    return hashlib.sha256(verifier).hexdigest()[:32]


def check_pattern(pattern: str) -> str:
    """Returns a device id or a pattern of device ids (`*` for any characters, `?` for one), if it is one.

    Raises:
        ConfigError: no device id could match it.
    """
    if not _PATTERN.match(pattern):
        raise ConfigError(f"{pattern!r} is neither a device id nor a pattern: allowed are a-z, 0-9, hyphens, * and ?")
    return pattern if "*" in pattern or "?" in pattern else check_id(pattern, "device id")


def matches(device: str, pattern: str) -> bool:
    """Whether a device id is what a pattern allows."""
    return fnmatchcase(device, pattern)


def make_claim(token: TokenFile, device: str, request: bytes) -> Claim:
    """Returns what a board asks for.

    Args:
        token: its token.
        device: the id that it wants to have.
        request: its signing request, in PEM.
    """
    key = Ed25519PrivateKey.from_private_bytes(token.secret)
    proof = key.sign(_proven_bytes(token.fleet, token.claim, device, request))
    return Claim(
        token=token_id(key.public_key().public_bytes_raw()), device=device, request=request.decode(), proof=proof.hex()
    )


def request_id(request: bytes) -> str:
    """Returns what an answer names the signing request by: the sha256 of its PEM, as 64 hexadecimal digits."""
    return hashlib.sha256(request).hexdigest()


def is_proven(claim: Claim, fleet: str, claim_name: str, verifier: bytes) -> bool:
    """Whether what a board asks was made with a token, for this fleet and claim, and was not changed since.

    Args:
        claim: what arrived.
        fleet: the fleet that it arrived at.
        claim_name: the claim on whose topic it arrived.
        verifier: the token's.
    """
    proven = _proven_bytes(fleet, claim_name, claim.device, claim.request.encode())
    try:
        Ed25519PublicKey.from_public_bytes(verifier).verify(bytes.fromhex(claim.proof), proven)
    except InvalidSignature:
        return False
    return True


def write_token(path: Path, token: TokenFile) -> None:
    """Writes a token's file, which only its owner can read.

    Raises:
        ConfigError: the file is there already.
        OSError: it cannot be written.
    """
    document = _Document(
        version=1,
        fleet=token.fleet,
        claim=token.claim,
        device=token.device,
        expires=token.expires,
        secret=token.secret.hex(),
        ca=token.ca.decode(),
        certificate=token.certificate.decode(),
        key=token.key.decode(),
    )
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; a token is never overwritten: name a new file") from None
    with os.fdopen(opened, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.absolute().parent)


def read_token(path: Path) -> TokenFile:
    """Returns a token out of its file.

    Raises:
        ConfigError: it cannot be read, others can read it too, or it is no token's.
    """
    try:
        check_private(path)
        document = msgspec.json.decode(path.read_bytes(), type=_Document)
        secret = bytes.fromhex(document.secret)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        # What is wrong, without the content: a secret is in it.
        kind = str(error) if isinstance(error, msgspec.ValidationError) else "it is damaged"
        raise ConfigError(f"{path}: not a file that `edgefed fleet token` has made: {kind}") from None
    if document.version != 1 or len(secret) != _SECRET_BYTES:
        raise ConfigError(f"{path}: made by another version of edgefed, or damaged; ask for a new token")
    read_certificate(document.ca.encode(), f"{path}: the fleet's authority in it")
    return TokenFile(
        fleet=check_id(document.fleet, f"{path}: fleet name"),
        claim=check_id(document.claim, f"{path}: claim name"),
        device=check_pattern(document.device),
        expires=document.expires,
        secret=secret,
        ca=document.ca.encode(),
        certificate=document.certificate.encode(),
        key=document.key.encode(),
    )


def _proven_bytes(fleet: str, claim: str, device: str, request: bytes) -> bytes:
    # No name has a zero byte in it, and the request comes last: two claims never give the same bytes.
    return b"\0".join((_DOMAIN, fleet.encode(), claim.encode(), device.encode(), request))
