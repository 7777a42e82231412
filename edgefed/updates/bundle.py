"""The bundle that a release travels in: one file, of which every byte follows from what was signed.

How it is laid out is in `updates.archive`. How an update is made, carried and read::

    make_bundle(path, ..., signer=…)      with the aggregator's certificate and key: `signatures.read_signer`
    open_bundle(path, verifier, ...)      before it is offered, and on the device: `signatures.read_verifier`
    unpack(bundle, directory)             the lock and the wheels, as the installer needs them
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgefed.errors import MessageError, SignatureError, UpdateError
from edgefed.files import hash_file, replace_file, sync_directory
from edgefed.security.identities import AGGREGATOR
from edgefed.updates.archive import Reader, members, written
from edgefed.updates.release import FORMAT, MANIFEST, Lock, Part, Release, release_topic

if TYPE_CHECKING:
    # Megabytes that an agent without signatures need not carry.
    from edgefed.security.signatures import Signer, Verifier

__all__ = ["Bundle", "make_bundle", "open_bundle", "unpack"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was found good, down to the last byte.

    Attributes:
        path: the file.
        release: what it is.
        document: what was signed: the release, as it was written.
    """

    path: Path
    release: Release
    document: bytes

    @property
    def id(self) -> str:
        """Sha256 of what was signed: the same for the same release, whenever it was signed."""
        return hashlib.sha256(self.document).hexdigest()


def make_bundle(
    path: Path,
    *,
    fleet: str,
    name: str,
    version: str,
    number: int,
    architecture: str,
    python: str,
    wheels: Iterable[Path],
    lock: bytes,
    signer: Signer,
    at_unix_s: float,
) -> Bundle:
    """Writes a bundle, whole or not at all, and returns it.

    Args:
        path: the file to write.
        fleet: whose release it is.
        name: what people call it.
        version: of edgefed in it.
        number: above those of all releases before.
        architecture: of the machines, as wheels name it.
        python: major and minor version of theirs.
        wheels: their files; `flashing.wheelhouse.read_wheelhouse` finds out whether they fit and are complete.
        lock: `flashing.wheelhouse.lock` of them.
        signer: the aggregator's.
        at_unix_s: the time of the signature.

    Raises:
        UpdateError: the signer is somebody else, or something about the release is not allowed.
        OSError: a file cannot be read or written.
    """
    if signer.identity != AGGREGATOR:
        raise UpdateError(
            f"a release is signed by {AGGREGATOR.common_name}, and this is the key of {signer.identity.common_name}"
        )
    files = sorted(wheels, key=lambda file: file.name)
    parts = tuple(Part(name=file.name, size_bytes=file.stat().st_size, sha256=hash_file(file)) for file in files)
    # Built by way of the document, so that what no reader would take is refused here.
    document = msgspec.json.encode(
        Release(
            fleet=fleet,
            name=name,
            version=version,
            number=number,
            architecture=architecture,
            python=python,
            lock=Lock(size_bytes=len(lock), sha256=hashlib.sha256(lock).hexdigest()),
            wheels=parts,
        )
    )
    release = _decoded(document, str(path))
    manifest = signer.sign(release_topic(fleet), document, at_unix_s)
    replace_file(path, written(release, manifest, lock, files))
    return Bundle(path, release, document)


def open_bundle(path: Path, verifier: Verifier, *, fleet: str, now_unix_s: float) -> Bundle:
    """Returns a bundle after looking at every byte of it; nothing is read that its size was not bounded before.

    Args:
        path: the file; it must not change any more.
        verifier: trusts the authority that the device was enrolled with.
        fleet: whose release it has to be.
        now_unix_s: the time, for the certificate of whoever signed.

    Raises:
        SignatureError: it was not signed by the aggregator of the fleet.
        UpdateError: it cannot be read, is damaged, cut short, or of a later format.
    """
    try:
        with path.open("rb") as file:
            reader = Reader(file, str(path))
            document = _verified(reader.manifest(), verifier, fleet, now_unix_s, str(path))
            release = _decoded(document, str(path))
            if release.fleet != fleet:
                raise UpdateError(f"{path} is for fleet {release.fleet}, and this device is of fleet {fleet}")
            reader.rest(release)
            return Bundle(path, release, document)
    except OSError as error:
        raise UpdateError(f"{path} cannot be read: {error.strerror or error}") from error


def unpack(bundle: Bundle, directory: Path) -> None:
    """Writes the lock and the wheels of a bundle into a fresh directory, all synced.

    Raises:
        UpdateError: the directory cannot be made or written, or the bundle has changed since it was opened.
    """
    try:
        directory.mkdir(parents=True)
        with bundle.path.open("rb") as file:
            reader = Reader(file, str(bundle.path))
            reader.manifest()
            for member in members(bundle.release):
                with (directory / member.name).open("xb") as out:
                    reader.member(member, out.write)
                    out.flush()
                    os.fsync(out.fileno())
        sync_directory(directory)
    except OSError as error:
        raise UpdateError(f"{bundle.path} cannot be unpacked to {directory}: {error.strerror or error}") from error


class _Format(msgspec.Struct):
    """What is read first, so that a later format is told as what it is."""

    format: int = FORMAT


def _verified(manifest: bytes, verifier: Verifier, fleet: str, now_unix_s: float, where: str) -> bytes:
    """Returns the document that was signed."""
    try:
        return verifier.verify(release_topic(fleet), manifest, AGGREGATOR, now_unix_s).payload
    except MessageError as error:
        raise SignatureError(f"{where} is no release of fleet {fleet}: {error}") from None


def _decoded(document: bytes, where: str) -> Release:
    try:
        found = msgspec.json.decode(document, type=_Format).format
        if found != FORMAT:
            raise UpdateError(
                f"{where} has bundle format {found}, and this edgefed reads {FORMAT}: one between them is needed"
            )
        return msgspec.json.decode(document, type=Release)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UpdateError(f"{where}: {MANIFEST} says what is not allowed: {error}") from None
