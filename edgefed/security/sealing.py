"""Updates that only the aggregator can read: sealed on the device, file to file, before they are cut into chunks.

::

    magic (16) | ephemeral X25519 public key (32) | blocks of 64 KiB, each with its tag (16); the last may be shorter

The key of a file is HKDF-SHA256 (RFC 5869) of an X25519 exchange (RFC 7748) between a key made for this one file and
the aggregator's, bound to both public keys and to fleet, run, round and device. Blocks are ChaCha20-Poly1305 (RFC 8439;
fast on boards without AES instructions) under a counter whose last byte marks the last block, so that none can be
changed, left out, moved or cut off: the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015).

The hash that a device offers is of the sealed file. The aggregator's sealing key is made for a run and kept in its
directory: where that is gone, nobody can open what was sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgefed.errors import ChunkError, ConfigError
from edgefed.files import check_private, replace_file

__all__ = ["SealingKey", "seal", "sealing_context"]

_MAGIC = b"edgefed sealed 1"
_KEY_BYTES, _TAG_BYTES = 32, 16
_BLOCK_BYTES = 64 * 1024


def sealing_context(fleet: str, run: str, round_: int, device: str) -> bytes:
    """Returns what a sealed update is bound to: it opens as this device's update of this round, and as no other."""
    return b"\0".join((_MAGIC, fleet.encode(), run.encode(), b"%d" % round_, device.encode()))


def seal(source: Path, target: Path, public: str, context: bytes) -> None:
    """Writes a file so that only the owner of a sealing key can read it.

    Args:
        source: what is sealed.
        target: what is written, whole or not at all; it may be `source`.
        public: the owner's public key, as `SealingKey.public` has it.
        context: see `sealing_context`.

    Raises:
        ChunkError: the public key is none.
        OSError: a file cannot be read or written.
    """
    ephemeral = X25519PrivateKey.generate()
    ours, theirs = ephemeral.public_key().public_bytes_raw(), bytes.fromhex(public)
    cipher = _cipher(ephemeral, theirs, ours + theirs, context)
    with source.open("rb") as file:
        blocks = _numbered(file, _BLOCK_BYTES)
        replace_file(target, _with(_MAGIC + ours, (cipher.encrypt(nonce, block, None) for nonce, block in blocks)))


class SealingKey:
    """Opens what was sealed for it.

    Args:
        key: the private key.
    """

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw().hex()

    @classmethod
    def read_or_make(cls, path: Path) -> SealingKey:
        """Returns the key in a file, which is made where it is missing; only its owner can read it.

        Raises:
            ConfigError: others can read it, or it is damaged.
            OSError: it cannot be read or written.
        """
        if not path.exists():
            replace_file(path, [X25519PrivateKey.generate().private_bytes_raw()], mode=0o600)
        check_private(path)
        try:
            return cls(X25519PrivateKey.from_private_bytes(path.read_bytes()))
        except ValueError:
            raise ConfigError(
                f"{path} is damaged: remove it; updates that are on their way are lost, later ones are not"
            ) from None

    def open(self, source: Path, target: Path, context: bytes) -> None:
        """Writes what a sealed file has in it; durable when this returns.

        Args:
            source: the sealed file.
            target: what is written, whole or not at all.
            context: see `sealing_context`.

        Raises:
            ChunkError: the file is not sealed, was sealed for another key, device or round, or was changed.
            OSError: a file cannot be read or written.
        """
        with source.open("rb") as file:
            magic, theirs = file.read(len(_MAGIC)), file.read(_KEY_BYTES)
            if magic != _MAGIC or len(theirs) != _KEY_BYTES:
                raise ChunkError("the update is not sealed")
            cipher = _cipher(self._key, theirs, theirs + bytes.fromhex(self.public), context)
            blocks = _numbered(file, _BLOCK_BYTES + _TAG_BYTES)
            try:
                replace_file(target, (cipher.decrypt(nonce, block, None) for nonce, block in blocks), mode=0o600)
            except InvalidTag:
                raise ChunkError(
                    "the sealed update was changed on the way, or sealed for another key, device or round"
                ) from None


def _cipher(own: X25519PrivateKey, theirs: bytes, salt: bytes, context: bytes) -> ChaCha20Poly1305:
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:  # of the wrong length, or a point that gives everybody the same secret
        raise ChunkError("the update is sealed with a public key that is none") from None
    return ChaCha20Poly1305(HKDF(SHA256(), _KEY_BYTES, salt, context).derive(shared))


def _numbered(file: BinaryIO, block_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the rest of a file in blocks, each with its nonce. There is always a last one, if an empty one."""
    block, number = file.read(block_bytes), 0
    while True:
        following = file.read(block_bytes)
        yield number.to_bytes(11, "big") + (b"\0" if following else b"\1"), block
        if not following:
            return
        block, number = following, number + 1


def _with(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest
