"""The root file system of a board that runs, read through ssh: many paths at once, for every question takes a while."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgefed.flashing.remote import Shell
from edgefed.flashing.tree import Entry, follow

__all__ = ["SshTree", "for_each"]

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
_READ = 'exec cat -- "$1"'
_READ_BEGINNING = 'exec head -c "$2" -- "$1"'


def for_each(body: str) -> str:
    """Returns a script that does something with every path `$path` of those that it reads, and ends each with a NUL.

    Args:
        body: of the loop, without single quotes.
    """
    return f"exec xargs -0 sh -c 'for path do {body} || exit 1; printf \"\\0\"; done' sh"


_LOOK = for_each(
    'if [ -L "$path" ]; then stat -c "%f %u %g" -- "$path" && readlink -n -- "$path"; '
    'elif [ -e "$path" ]; then stat -c "%f %u %g" -- "$path"; fi'
)
_HASH = for_each('sha256sum < "$path"')


class SshTree:
    """The root file system of the board at the other end of a shell.

    What was seen is remembered: a tree is looked at once, and not after it was written to.
    """

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._known: dict[str, Entry | None] = {}
        self._digests: dict[str, str] = {}
        self._expected: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """What the user calls the board."""
        return self._shell.host

    def lookup(self, path: str) -> Entry | None:
        """Returns what is at the path itself, or None."""
        if path not in self._known:
            self._look([path])
        return self._known[path]

    def expect(self, paths: Iterable[str]) -> None:
        """Looks many paths up at once, and then, at once again, what the links among them lead to."""
        seen = _Seen(self.name, self._known)
        self._expected = frozenset(paths)
        while True:
            real = {follow(seen, path, last=last) for path in self._expected for last in (False, True)}
            if not seen.unknown:
                break
            self._look(sorted(seen.unknown))
            seen.unknown.clear()
        self._expected = frozenset(real)

    def read(self, path: str, limit_bytes: int | None = None) -> bytes:
        """Returns a file's content, or its beginning."""
        if limit_bytes is None:
            return self._shell.run(_READ, path)
        return self._shell.run(_READ_BEGINNING, path, str(limit_bytes))

    def sha256(self, path: str) -> str:
        """Returns the sha256 of a file's content, as 64 hexadecimal digits; of all files that are expected at once."""
        if path not in self._digests:
            files = {here for here in self._expected if (entry := self._known.get(here)) and entry.kind == "file"}
            wanted = sorted(files | {path})
            answers = self._ask(_HASH, wanted)
            self._digests |= {here: answer.split()[0].decode() for here, answer in zip(wanted, answers, strict=True)}
        return self._digests[path]

    def _look(self, paths: list[str]) -> None:
        for path, answer in zip(paths, self._ask(_LOOK, [path or "/" for path in paths]), strict=True):
            self._known[path] = _entry(answer) if answer else None

    def _ask(self, script: str, paths: list[str]) -> list[bytes]:
        asked = b"".join(os.fsencode(path) + b"\0" for path in paths)
        return self._shell.run(script, stdin=asked).split(b"\0")[:-1]


@dataclass(slots=True)
class _Seen:
    """What is known already; it notes what is asked beyond that, and takes it as not there."""

    name: str
    known: dict[str, Entry | None]
    unknown: set[str] = field(default_factory=set)

    def lookup(self, path: str) -> Entry | None:
        if path not in self.known:
            self.unknown.add(path)
        return self.known.get(path)


def _entry(answer: bytes) -> Entry:
    """Returns what `stat` said, and after its line where a link leads."""
    line, _, target = answer.partition(b"\n")
    bits, uid, gid = line.split()
    mode = int(bits, 16)
    kind = _KINDS.get(stat.S_IFMT(mode), "other")
    return Entry(kind, stat.S_IMODE(mode), int(uid), int(gid), os.fsdecode(target))  # type: ignore[arg-type]
