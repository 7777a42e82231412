"""What put edgefed on this board: the record that `edgefed flash` leaves, told at birth by its digest.

By the digest an operator sees that a board in the field has what was flashed, and which of several flashings it was.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

__all__ = ["FLASH_RECORD", "Flashed", "read_flashed"]

FLASH_RECORD = "/etc/edgefed/flash-manifest.json"


class Flashed(msgspec.Struct, frozen=True, kw_only=True):
    """A flashing.

    Attributes:
        manifest_sha256: of the record on the board, which has the path and sha256 of every file that was written.
        edgefed_version: that flashed.
        board: what it was flashed for, in words.
        complete: whether the flashing came to its end.
    """

    manifest_sha256: str
    edgefed_version: str
    board: str
    complete: bool


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    edgefed: str
    board: str
    complete: bool = True


def read_flashed(root: Path = Path("/")) -> tuple[Flashed | None, str]:
    """Returns what flashed this board, and "": or None and why nobody knows; "" where it was not flashed at all.

    Args:
        root: of the board's file system.
    """
    try:
        content = (root / FLASH_RECORD.lstrip("/")).read_bytes()
        record = msgspec.json.decode(content, type=_Record)
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{FLASH_RECORD} cannot be read: {error.strerror}"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return None, f"{FLASH_RECORD} is damaged: {error}"
    digest = hashlib.sha256(content).hexdigest()
    return (
        Flashed(manifest_sha256=digest, edgefed_version=record.edgefed, board=record.board, complete=record.complete),
        "",
    )
