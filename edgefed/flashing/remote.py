"""Commands on a board that is reached through something else: what flashing needs of it, and how a script gets through.

That something is ssh for `edgefed flash ssh`, and whatever Ansible is told to use for its role.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Protocol

__all__ = ["Shell", "answer", "command_line"]

_MARK = b"\x1e"
"""Comes before what a script says: a shell's startup files may say things too."""


class Shell(Protocol):
    """A POSIX shell on the board, as root."""

    @property
    def host(self) -> str:
        """What the user calls the board."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the board can still be told something."""
        ...

    def run(self, script: str, *arguments: str, stdin: bytes = b"") -> bytes:
        """Returns what a shell script on the board writes.

        Args:
            script: for a POSIX shell.
            arguments: its $1, $2 …
            stdin: what it reads.

        Raises:
            FlashError: the connection is cut, or the script ends with another code than 0.
        """
        ...

    def send(self, script: str, *arguments: str, blocks: Iterable[bytes]) -> None:
        """Runs a script on the board that reads much and writes nothing before it has read it all.

        Raises:
            FlashError: as in `run`.
        """
        ...


def command_line(script: str, arguments: Sequence[str]) -> str:
    """Returns a script as a command for the login shell: whatever that is, it knows single quotes."""
    return shlex.join(("sh", "-c", f"export LC_ALL=C; printf '\\036'\n{script}", "sh", *arguments))


def answer(said: bytes) -> bytes | None:
    """Returns what a script of `command_line` said; None where it has not come to run."""
    _, mark, rest = said.partition(_MARK)
    return rest if mark else None
