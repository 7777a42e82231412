"""What is checked before it is read: signed states and profiles, claims, revocation lists, what was heard before."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from edgefed.errors import ConfigError, MessageError
from edgefed.protocol.messages.claims import decode_claim
from edgefed.protocol.messages.retained import DeviceState
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.security import certificates, tokens
from edgefed.security.authorship import Authorship
from edgefed.security.identities import Identity
from edgefed.security.memory import LatestWords, Memory, Word
from edgefed.security.revocation_lists import make_revocation_list, read_revocation_list
from edgefed.security.signatures import Signer, Verifier
from edgefed.security.signing_requests import make_request
from tools.fuzzing.engine import Target
from tools.fuzzing.mutations import Mutation, damaged, json_document, wrong_numbers

__all__ = ["signed_targets"]

_TEXT: tuple[Mutation, ...] = (damaged, wrong_numbers, json_document, json_document)
_TOPICS, _DEVICE = Topics("kitchen"), Identity("device", "board-07")
_NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


def signed_targets(scratch: Path) -> tuple[Target, ...]:
    """Returns the readers; `scratch` is a directory that they may write to."""
    scratch.mkdir(exist_ok=True)
    authority = certificates.make_authority(_TOPICS.fleet, days=30, now=_NOW)
    key = ed25519.Ed25519PrivateKey.generate()
    signer = Signer(certificates.issue(authority, _DEVICE, key.public_key(), days=20, now=_NOW), key)
    verifier, state = Verifier(authority.certificate), _TOPICS.device(_DEVICE.name, "state")
    said = [encode(DeviceState(status=status, instance="p")) for status in ("ready", "lost")]  # type: ignore[arg-type]
    states = tuple(signer.sign(state, word, _NOW.timestamp(), 1.5) for word in said)
    lists = tuple(_revocations(authority, count) for count in (0, 3))
    words = (_words(scratch / "sample"),)
    return (
        Target("signed state", _hearer(verifier, state), MessageError, states, _TEXT),
        Target("claim", decode_claim, MessageError, (_claim(key),), _TEXT),
        Target("revocation list", _list_reader(authority.certificate), ConfigError, lists, (damaged,)),
        Target("latest words", _words_reader(scratch / "words"), ConfigError, words, _TEXT),
    )


def _hearer(verifier: Verifier, topic: str) -> Callable[[bytes], object]:
    """Hears it as a fresh aggregator does."""

    def read(payload: bytes) -> object:
        clock = (_NOW + timedelta(minutes=1)).timestamp
        return Authorship(_TOPICS, None, verifier, Memory.open(None), clock=clock).incoming(topic, payload)

    return read


def _claim(key: ed25519.Ed25519PrivateKey) -> bytes:
    token = tokens.TokenFile(
        fleet="kitchen", claim="field", device="*", expires=_NOW, secret=bytes(32), ca=b"", certificate=b"", key=b""
    )
    return encode(tokens.make_claim(token, _DEVICE.name, make_request(key, _DEVICE)))


def _revocations(authority: certificates.Authority, count: int) -> bytes:
    revoked = dict.fromkeys(range(1, count + 1), _NOW)
    return make_revocation_list(authority, revoked, number=7, now=_NOW)


def _list_reader(authority: x509.Certificate) -> Callable[[bytes], object]:
    return lambda pem: read_revocation_list(pem, "crl.pem", authority=authority)


def _words(file: Path) -> bytes:
    words = LatestWords(file)
    for number, channel in enumerate(("state", "profile"), 1):
        topic = _TOPICS.device(_DEVICE.name, channel)  # type: ignore[arg-type]
        words.take(topic, Word(session_unix_s=number, at_unix_s=2.5, instance="p"))
    words.keep(at_once=True)
    return file.read_bytes()


def _words_reader(file: Path) -> Callable[[bytes], object]:
    def read(content: bytes) -> object:
        file.write_bytes(content)
        return LatestWords(file)

    return read
