"""How far the store had come, outside of the store: a store that is behind has lost what it had.

SQLite drops what it finds damaged at the end of its log as if it had never been committed, which nothing inside the
store can tell. So the number of durable writes is kept here too, after each of them. It is not synced: a process that
is killed leaves it whole, and after a power cut it is behind the store at worst, which says nothing.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path

__all__ = ["Mark"]


class Mark:
    """A file with a number.

    Args:
        path: made if it is not there.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @staticmethod
    def read(path: Path) -> int:
        """Returns the number in a file; 0 where there is none, or one that was damaged: it then says nothing."""
        try:
            number, check = path.read_text("ascii").split()
            return int(number) if check == _check(int(number)) else 0
        except (OSError, ValueError):
            return 0

    def advance(self, writes: int) -> None:
        """Takes a larger number. A disk that refuses it costs nothing but the mark."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file, f"{writes:020d} {_check(writes)}\n".encode(), 0)

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)


def _check(number: int) -> str:
    return f"{zlib.crc32(str(number).encode()):08x}"
