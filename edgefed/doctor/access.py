"""Whether another user may use a file: root may look at everything, and the agent does not run as root."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

__all__ = ["READ", "WRITE", "User", "find_user"]

READ, WRITE, _ENTER = 4, 2, 1  # the permission bits of a file's mode


@dataclass(frozen=True, slots=True)
class User:
    """A user of this machine.

    Attributes:
        name: of the user.
        uid: number.
        groups: numbers of all groups that the user is in.
    """

    name: str
    uid: int
    groups: frozenset[int]

    def may(self, bits: int, path: Path) -> bool:
        """Returns whether the mode of the path, and of all directories on the way, let this user at it.

        Args:
            bits: `READ`, `WRITE`, or both.
            path: it exists. Access control lists are not looked at.
        """
        if self.uid == 0:
            return True
        real = path.resolve()
        needed = bits | _ENTER if real.is_dir() else bits
        return self._has(needed, real) and all(self._has(_ENTER, place) for place in real.parents)

    def _has(self, bits: int, path: Path) -> bool:
        found = path.stat()
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in self.groups else 0
        return found.st_mode >> shift & bits == bits


def find_user(name: str) -> User | None:
    """Returns the user of a name; None where there is no such user."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return User(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))
