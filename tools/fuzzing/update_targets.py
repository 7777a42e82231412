"""What an update is read from: the bundle as it comes, its manifest even where it is signed, the board's records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ed25519

from edgefed.errors import UpdateError
from edgefed.security import certificates
from edgefed.security.identities import AGGREGATOR
from edgefed.security.signatures import Signer, Verifier
from edgefed.updates.archive import Member
from edgefed.updates.bundle import make_bundle, open_bundle
from edgefed.updates.health import FILE, Health, read_health
from edgefed.updates.places import Home
from edgefed.updates.record import Record, Trial, read_record, read_trial
from edgefed.updates.release import MANIFEST, Result, release_topic
from tools.fuzzing.engine import Target
from tools.fuzzing.mutations import Mutation, damaged, json_document, wrong_numbers

__all__ = ["update_targets"]

_FLEET = "kitchen"
_NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
_NOW_S = _NOW.timestamp() + 60
_BLOCKS = 3 * 2**20  # a bundle is read in blocks of a MiB
_JSON: tuple[Mutation, ...] = (damaged, wrong_numbers, json_document, json_document)


def update_targets(scratch: Path) -> tuple[Target, ...]:
    """Returns the readers; `scratch` is a directory that they may write to."""
    home = Home(scratch / "home")
    home.updates.mkdir(parents=True)
    authority = certificates.make_authority(_FLEET, days=30, now=_NOW)
    key = ed25519.Ed25519PrivateKey.generate()
    signer = Signer(certificates.issue(authority, AGGREGATOR, key.public_key(), days=20, now=_NOW), key)
    whole, document = _sample(scratch, signer)
    verifier = Verifier(authority.certificate)
    samples = (_record(), _trial(), _health())
    return (
        Target("release bundle", _opener(scratch, verifier), UpdateError, (whole,), (damaged,), _BLOCKS),
        Target("release", _signed(scratch, signer, verifier, whole), UpdateError, (document,), _JSON, _BLOCKS),
        Target("update record", _at(home.record, lambda: read_record(home)), UpdateError, samples[:1], _JSON),
        Target("update trial", _at(home.trial, lambda: read_trial(home)), UpdateError, samples[1:2], _JSON),
        Target("agent health", _at(scratch / FILE, lambda: read_health(scratch)), None, samples[2:], _JSON),
    )


def _sample(scratch: Path, signer: Signer) -> tuple[bytes, bytes]:
    """Returns a bundle, and what was signed in it."""
    wheels = [scratch / f"{name}-1.0-py3-none-any.whl" for name in ("edgefed", "pip")]
    for wheel in wheels:
        wheel.write_bytes(wheel.name.encode() * 40)
    bundle = make_bundle(
        scratch / "sample.bundle",
        fleet=_FLEET,
        name="spring",
        version="1.0",
        number=7,
        architecture="aarch64",
        python="3.11",
        wheels=wheels,
        lock=b"edgefed==1.0\npip==1.0\n",
        signer=signer,
        at_unix_s=_NOW_S,
    )
    return bundle.path.read_bytes(), bundle.document


def _opener(scratch: Path, verifier: Verifier) -> Callable[[bytes], object]:
    path = scratch / "fuzzed.bundle"
    return _at(path, lambda: open_bundle(path, verifier, fleet=_FLEET, now_unix_s=_NOW_S))


def _signed(scratch: Path, signer: Signer, verifier: Verifier, whole: bytes) -> Callable[[bytes], object]:
    """Reads a manifest as one that the aggregator has signed, so that what comes behind the signature is reached."""
    manifest_bytes = int(whole[124:135], 8)
    rest = whole[512 + manifest_bytes + -manifest_bytes % 512 :]
    read = _opener(scratch, verifier)

    def sign_and_read(document: bytes) -> object:
        signed = signer.sign(release_topic(_FLEET), document, _NOW_S)
        return read(Member(MANIFEST, len(signed), "").header + signed + bytes(-len(signed) % 512) + rest)

    return sign_and_read


def _at(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    def write_and_read(payload: bytes) -> object:
        path.write_bytes(payload)
        return read()

    return write_and_read


def _record() -> bytes:
    result = Result(
        bundle=hashlib.sha256().hexdigest(), file="a.bundle", outcome="installed", began_unix_s=1.5, ended_unix_s=2.5
    )
    return msgspec.json.encode(Record(highest_number=7, latest="0" * 64, result=result, tries={"1" * 64: 2}))


def _trial() -> bytes:
    return msgspec.json.encode(Trial(file="a.bundle", began_unix_s=1.5, number=7, environment="0123456789abcdef"))


def _health() -> bytes:
    return msgspec.json.encode(Health(version="1.0", environment="0123456789abcdef", pid=7, connected=True))
