"""A fleet's signatures, and bundles made with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from edgefed.security import certificates
from edgefed.security.certificates import Authority
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.signatures import Signer, Verifier
from edgefed.updates.bundle import Bundle, make_bundle

FLEET = "kitchen"
NOW = datetime.now(timezone.utc)  # the installer goes by the real clock
NOW_S = NOW.timestamp() + 60
AUTHORITY = certificates.make_authority(FLEET, days=3650, now=NOW)
VERIFIER = Verifier(AUTHORITY.certificate)


def signer(identity: Identity = AGGREGATOR, authority: Authority = AUTHORITY) -> Signer:
    key = ed25519.Ed25519PrivateKey.generate()
    return Signer(certificates.issue(authority, identity, key.public_key(), days=30, now=NOW), key)


SIGNER = signer()


def bundle(path: Path, wheels: Sequence[Path], **changes: Any) -> Bundle:
    """Makes a bundle of wheels, with a lock that nobody installs from."""
    settings: dict[str, Any] = {
        "fleet": FLEET,
        "name": "spring",
        "version": "1.0",
        "number": 7,
        "architecture": "aarch64",
        "python": "3.11",
        "lock": b"edgefed==1.0 --hash=sha256:0\n",
        "signer": SIGNER,
        "at_unix_s": NOW_S,
    }
    return make_bundle(path, wheels=wheels, **{**settings, **changes})
