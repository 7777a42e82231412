"""A board's root file system as flashing sees it: a directory, or the inside of an image.

Links are followed here, as the board itself will follow them: an absolute one starts at the board's root, and `..` at
the root stays there. So no link, however it was made, leads out of the tree into the machine that flashes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from edgefed.errors import FlashError

__all__ = ["Entry", "Names", "Tree", "follow", "read_text"]

_MAX_LINKS = 40  # as many as Linux follows


@dataclass(frozen=True, slots=True)
class Entry:
    """What is at a path.

    Attributes:
        kind: of thing.
        mode: permission bits.
        uid, gid: the owner's numbers.
        target: where a link points, as it is written in it; empty for anything else.
    """

    kind: Literal["file", "directory", "link", "other"]
    mode: int = 0
    uid: int = 0
    gid: int = 0
    target: str = ""


class Names(Protocol):
    """What is where on a board. Paths are absolute in it, and none of their parents is a link."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    def lookup(self, path: str) -> Entry | None:
        """Returns what is at the path itself, or None."""
        ...


class Tree(Names, Protocol):
    """The board's root file system, with what its files hold."""

    def expect(self, paths: Iterable[str]) -> None:
        """Is told which paths will be looked up, for a tree that does so faster at once."""
        ...

    def read(self, path: str, limit_bytes: int | None = None) -> bytes:
        """Returns a file's content, or its beginning."""
        ...

    def sha256(self, path: str) -> str:
        """Returns the sha256 of a file's content, as 64 hexadecimal digits."""
        ...


def follow(tree: Names, path: str, *, last: bool = True) -> str:
    """Returns the path with every link in it followed; what is not there yet is taken as it is written.

    Args:
        tree: in which to look.
        path: absolute in the tree.
        last: whether a link at the very end is followed too.

    Raises:
        FlashError: the links lead in a circle.
    """
    waiting, done, links = _parts(path), [""], 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            done = done[:-1] or [""]
            continue
        here = "/".join((*done, part))
        entry = tree.lookup(here) if last or waiting else None
        if entry is None or entry.kind != "link":
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise FlashError(f"{tree.name}: the symbolic links at {path} lead in a circle; is this a root file system?")
        if entry.target.startswith("/"):
            done = [""]
        waiting += _parts(entry.target)
    return "/".join(done) or "/"


def _parts(path: str) -> list[str]:
    """Returns the names in a path, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def read_text(tree: Tree, path: str) -> str | None:
    """Returns the text of a file that a link may lead to; None where there is no such file."""
    real = follow(tree, path)
    entry = tree.lookup(real)
    if entry is None or entry.kind != "file":
        return None
    return tree.read(real).decode(errors="replace")
