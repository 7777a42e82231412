"""Messages that say who wrote them, whatever the broker makes of them: signed by the key of a fleet's certificate.

A signed message is the JSON document as it was, with one more field at its end::

    {"type": "join", …, "signature": {"at_unix_s": 1790000000.25, "certificate": "…", "value": "…"}}

What is signed is the topic, which names fleet and device, the time, and the bytes of the document without that field,
which name run, round and hash. What the broker keeps (states and profiles) has a session too, `session_unix_s`, which
orders the processes of its author (`security.memory`). So nothing has to be written anew to be checked, a reader of a
later version's message checks fields that it does not know, and one who knows nothing of signatures leaves the field
aside.

The certificate travels along (DER, base64): who trusts the fleet's authority needs nobody else's keys. Keys that
edgefed makes are Ed25519 (RFC 8032); for keys on P-256 it is ECDSA with SHA-256.
"""

from __future__ import annotations

import base64
import re
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from edgefed.errors import ConfigError, MessageError
from edgefed.files import check_private
from edgefed.security import certificates, keys
from edgefed.security.identities import Identity
from edgefed.security.revocations import Revocations

__all__ = ["SIGNATURE_ROOM_BYTES", "Signed", "Signer", "Verifier", "read_signer", "read_verifier"]

SIGNATURE_ROOM_BYTES = 2048
"""A signature makes a message no longer than that."""

_DOMAIN = b"edgefed message signature 1\0"  # so that no signature made in TLS can pass for one of ours, or the reverse
_KEPT_DOMAIN = b"edgefed kept message signature 1\0"
_SUFFIX = re.compile(
    rb',"signature":\{"at_unix_s":(\d{1,12}\.\d{6}),(?:"session_unix_s":(\d{1,12}\.\d{6}),)?'
    rb'"certificate":"([A-Za-z0-9+/]{1,1800}={0,2})","value":"([A-Za-z0-9+/]{1,120}={0,2})"\}\}\Z'
)
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Signed:
    """A message whose signature is good.

    Attributes:
        payload: the document without its signature.
        at_unix_s: when it was signed, by the clock of whoever did.
        session_unix_s: the session of its author's process; None where the message has none.
    """

    payload: bytes
    at_unix_s: float
    session_unix_s: float | None = None


class Signer:
    """Signs in one member's name.

    Args:
        certificate: the member's.
        key: its private key.

    Raises:
        ConfigError: the key is not the certificate's, or of a kind that signs no messages.
    """

    def __init__(self, certificate: x509.Certificate, key: keys.PrivateKey) -> None:
        if certificate.public_key() != key.public_key():
            raise ConfigError("the private key is not the one of the certificate")
        if not keys.signs_messages(key):
            raise ConfigError("messages are signed with Ed25519 or P-256 keys, and this is on another curve")
        self.identity = Identity.parse(certificates.common_name(certificate))
        self._key = key
        self._certificate = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER))

    def sign(self, topic: str, payload: bytes, at_unix_s: float, session_unix_s: float | None = None) -> bytes:
        """Returns a JSON document with its signature.

        Args:
            topic: where it is published.
            payload: the document: an object with at least one field.
            at_unix_s: the time.
            session_unix_s: the session of this process, for what the broker keeps.
        """
        at = b"%.6f" % at_unix_s
        session = None if session_unix_s is None else b"%.6f" % session_unix_s
        value = base64.b64encode(self._value(_signed_bytes(topic, at, session, payload)))
        fields = (
            b'"at_unix_s":' + at,
            *(() if session is None else (b'"session_unix_s":' + session,)),
            b'"certificate":"' + self._certificate + b'"',
            b'"value":"' + value + b'"',
        )
        return payload[:-1] + b',"signature":{' + b",".join(fields) + b"}}"

    def _value(self, signed: bytes) -> bytes:
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(signed)
        return self._key.sign(signed, ec.ECDSA(hashes.SHA256()))


class Verifier:
    """Checks signatures of a fleet's members.

    Args:
        authority: the certificate of the fleet's authority.
        revocations: what it has taken back, as far as this member knows.
    """

    def __init__(self, authority: x509.Certificate, revocations: Revocations | None = None) -> None:
        self.fleet = certificates.fleet_of(authority)
        self._authority = authority
        self._revocations = revocations
        self._known: OrderedDict[bytes, _Member] = OrderedDict()

    def verify(self, topic: str, payload: bytes, author: Identity, now_unix_s: float) -> Signed:
        """Returns what was signed.

        Args:
            topic: where it arrived.
            payload: what arrived.
            author: who alone may have written it.
            now_unix_s: the time.

        Raises:
            MessageError: it is not signed, or not by them, or was changed on the way.
        """
        found = _SUFFIX.search(payload, max(0, len(payload) - SIGNATURE_ROOM_BYTES))
        if found is None:
            raise MessageError(f"it is not signed, and only {author.common_name} may say that")
        at, session, certificate, value = found.groups()
        document = payload[: found.start()] + b"}"
        member = self._member(certificate)
        member.check(author, now_unix_s)
        self._check_not_revoked(member)
        try:
            _verify(member.key, _decoded(value), _signed_bytes(topic, at, session, document))
        except (InvalidSignature, ValueError):
            raise MessageError(f"{author.common_name} has signed something else: it was changed on the way") from None
        return Signed(document, float(at), None if session is None else float(session))

    def _check_not_revoked(self, member: _Member) -> None:
        since = None if self._revocations is None else self._revocations.since(member.serial)
        if since is not None:
            raise MessageError(
                f"it is signed with a certificate of {member.name} that was revoked on {since:%Y-%m-%d %H:%M} UTC"
            )

    def _member(self, encoded: bytes) -> _Member:
        """Returns a certificate that the authority has issued; looking it up is cheaper than reading it again."""
        if encoded in self._known:
            self._known.move_to_end(encoded)
            return self._known[encoded]
        try:
            certificate = x509.load_der_x509_certificate(_decoded(encoded))
            certificate.verify_directly_issued_by(self._authority)
            member = _Member.of(certificate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion):
            raise MessageError("it is signed with a certificate that is not of the fleet's authority") from None
        self._known[encoded] = member
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return member


@dataclass(frozen=True, slots=True)
class _Member:
    """What a certificate of the authority says."""

    name: str
    serial: int
    is_client: bool
    begins_unix_s: float
    ends_unix_s: float
    key: object

    @classmethod
    def of(cls, certificate: x509.Certificate) -> _Member:
        try:
            uses = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        except x509.ExtensionNotFound:
            uses = []
        return cls(
            certificates.common_name(certificate),
            certificate.serial_number,
            ExtendedKeyUsageOID.CLIENT_AUTH in uses,
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
            certificate.public_key(),
        )

    def check(self, author: Identity, now_unix_s: float) -> None:
        """Sees to it that this is the author's certificate, and in force."""
        if self.name != author.common_name:
            raise MessageError(f"it is signed by {self.name!r}, and only {author.common_name} may say that")
        if not self.is_client:
            raise MessageError("it is signed with a certificate that is not a member's")
        if not self.begins_unix_s <= now_unix_s < self.ends_unix_s:
            begins, ends, now = map(_clock, (self.begins_unix_s, self.ends_unix_s, now_unix_s))
            raise MessageError(
                f"it is signed with a certificate that counts from {begins} to {ends}, and this machine's clock says "
                f"{now}: is the clock right?"
            )


def read_signer(certificate: Path, key: Path) -> Signer:
    """Returns a signer with the files of a member.

    Raises:
        ConfigError: one of them cannot be used, or others can read the key.
    """
    try:
        shown = certificates.read_certificate(certificate.read_bytes(), str(certificate))
        check_private(key)
        secret = keys.read_key(key.read_bytes(), str(key))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no file {error.filename}: certificate and key come with enrolling (`edgefed fleet enroll`, or "
            "`edgefed agent --enroll TOKEN`)"
        ) from None
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if shown.public_key() != secret.public_key():
        raise ConfigError(f"{key} is not the key of {certificate}: copy both again, from one place")
    return Signer(shown, secret)


def read_verifier(authority: Path, revocations: Path | None = None) -> Verifier:
    """Returns a verifier that trusts the authority in a file, less what the list in another one takes back.

    Raises:
        ConfigError: one of them cannot be used.
    """
    try:
        certificate = certificates.read_certificate(authority.read_bytes(), str(authority))
    except OSError as error:
        raise ConfigError(f"{authority}: cannot be read: {error.strerror}") from error
    return Verifier(certificate, None if revocations is None else Revocations(revocations, certificate))


def _signed_bytes(topic: str, at: bytes, session: bytes | None, document: bytes) -> bytes:
    if session is None:
        return b"\0".join((_DOMAIN + topic.encode(), at, document))
    return b"\0".join((_KEPT_DOMAIN + topic.encode(), at, session, document))


def _decoded(text: bytes) -> bytes:
    """Returns the bytes of base64 as `b64encode` writes it; other spellings of the same bytes are a ValueError."""
    found = base64.b64decode(text, validate=True)
    if base64.b64encode(found) != text:
        raise ValueError("not canonical base64")
    return found


def _clock(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, timezone.utc):%Y-%m-%d %H:%M} UTC"


def _verify(key: object, value: bytes, signed: bytes) -> None:
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(value, signed)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(value, signed, ec.ECDSA(hashes.SHA256()))
    else:
        raise ValueError("not a key that signs messages")
