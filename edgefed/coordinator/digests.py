"""Digests that tell damage from what was written: of rows, of a chain of rows, and of a state's directory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgefed.files import hash_file

__all__ = ["directory_digest", "row_digest"]


def row_digest(*values: object) -> str:
    """Returns the digest of a row's values, 32 hexadecimal digits; one that takes in another row's follows it."""
    digest = hashlib.sha256()
    for value in values:
        text = (value + 0.0).hex() if isinstance(value, float) else str(value)  # a database knows one zero only
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:32]


def directory_digest(directory: Path) -> str:
    """Returns the digest of the names and contents of all files in a directory, 64 hexadecimal digits.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        digest.update(f"{len(path.name)}:{path.name}{hash_file(path)}".encode())
    return digest.hexdigest()
