"""What kind of system is on a board's root file system, found out from its files: nothing of it is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from edgefed.errors import FlashError
from edgefed.flashing.tree import Tree, follow, read_text
from edgefed.logs import printable

__all__ = ["MIN_PYTHON", "Board", "check_python", "inspect"]

MIN_PYTHON = (3, 10)
_NEWEST_MINOR = 20
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""e_machine of an ELF header, by the names that wheels use (elf.h)."""
_TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "armv7l": "arm-linux-gnueabihf"}
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_GLIBC = re.compile(rb"GNU C Library [^\n]*release version (\d+)\.(\d+)")
_L4T = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_JETPACKS = {32: "JetPack 4", 34: "JetPack 5", 35: "JetPack 5", 36: "JetPack 6", 38: "JetPack 7", 39: "JetPack 7"}
"""By L4T major version, as NVIDIA's release notes pair them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A system that wheels must fit.

    Attributes:
        architecture: as wheels name it, such as `aarch64`.
        python: (major, minor) of its `python3`.
        glibc: (major, minor) of its C library; None where it could not be told.
        system: what it calls itself.
        l4t: version of NVIDIA's Linux for Tegra, such as `36.4.3`; empty on others.
    """

    architecture: str
    python: tuple[int, int]
    glibc: tuple[int, int] | None = None
    system: str = ""
    l4t: str = ""

    @property
    def jetpack(self) -> str:
        """The JetPack that the L4T version belongs to; empty where there is none or it is not known."""
        return _JETPACKS.get(int(self.l4t.partition(".")[0]), "") if self.l4t else ""

    @property
    def words(self) -> str:
        """The board in a few words, for messages."""
        parts = [self.system or "Linux", f"L4T {self.l4t}" if self.l4t else "", self.jetpack, self.architecture]
        return ", ".join(filter(None, (*parts, f"Python {self.python[0]}.{self.python[1]}")))


def inspect(tree: Tree) -> Board:
    """Returns what is on a root file system.

    Raises:
        FlashError: it is no root file system, runs no systemd, or its Python is missing or too old.
    """
    tree.expect(_expected())
    architecture = _architecture(tree)
    if not any(tree.lookup(follow(tree, path)) for path in _SYSTEMD):
        raise FlashError(f"{tree.name}: there is no systemd in it, which starts the agent at boot")
    release = _os_release(tree)
    l4t = _L4T.match(read_text(tree, "/etc/nv_tegra_release") or "")
    python = _python(tree)
    board = Board(
        architecture=architecture,
        python=python or (0, 0),
        glibc=_glibc(tree, architecture),
        system=printable(release.get("PRETTY_NAME", "")),
        l4t=f"{l4t[1]}.{l4t[2]}" if l4t else "",
    )
    if python is None:
        raise FlashError(f"{tree.name}: there is no /usr/bin/python3 in it: install python3 there first")
    check_python(board, tree.name)
    if tree.lookup(follow(tree, f"/usr/lib/python3.{python[1]}/venv/__main__.py")) is None and not tree.lookup(
        follow(tree, f"/usr/local/lib/python3.{python[1]}/venv/__main__.py")
    ):
        raise FlashError(f"{tree.name}: its Python has no module venv: install python3-venv there first")
    return board


def check_python(board: Board, name: str) -> None:
    """Refuses a board whose Python edgefed does not run on, and names the way out.

    Raises:
        FlashError: it is too old.
    """
    if board.python >= MIN_PYTHON:
        return
    way_out = (
        "an Orin takes JetPack 6; a Xavier or Nano stays where it is and runs the agent in a container"
        if board.l4t
        else "take a newer release of this system, or run the agent in a container"
    )
    wanted = f"edgefed needs Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]}"
    raise FlashError(f"{name} is too old ({board.words}): {wanted}; {way_out} that has it")


def _expected() -> Iterator[str]:
    """Yields the paths that are looked up on most boards."""
    yield from ("/bin/sh", *_SYSTEMD, "/etc/nv_tegra_release", "/etc/os-release", "/usr/lib/os-release")
    yield from (f"/usr/lib/{triplet}/libc.so.6" for triplet in _TRIPLETS.values())
    for prefix in ("/usr", "/usr/local"):
        yield f"{prefix}/bin/python3"
        for minor in range(MIN_PYTHON[1], _NEWEST_MINOR):
            yield f"{prefix}/lib/python3.{minor}/venv/__main__.py"


def _architecture(tree: Tree) -> str:
    shell = follow(tree, "/bin/sh")
    entry = tree.lookup(shell)
    header = tree.read(shell, 20) if entry is not None and entry.kind == "file" else b""
    if header[:4] != b"\x7fELF":
        raise FlashError(f"{tree.name}: is not a Linux root file system: there is no program at /bin/sh in it")
    machine = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    if machine not in _MACHINES:
        raise FlashError(f"{tree.name}: is made for a processor that edgefed does not know (ELF machine {machine})")
    return _MACHINES[machine]


def _python(tree: Tree) -> tuple[int, int] | None:
    for directory in ("/usr/bin", "/usr/local/bin"):
        real = follow(tree, f"{directory}/python3")
        if tree.lookup(real) is None:
            continue
        if named := re.fullmatch(r".*/python3\.(\d+)", real):
            return 3, int(named[1])
        for minor in range(_NEWEST_MINOR, 5, -1):  # python3 is a program of its own: its version lies beside it
            if tree.lookup(follow(tree, f"{directory}/python3.{minor}")):
                return 3, minor
    return None


def _glibc(tree: Tree, architecture: str) -> tuple[int, int] | None:
    triplet = _TRIPLETS.get(architecture, f"{architecture}-linux-gnu")
    for directory in (f"/usr/lib/{triplet}", f"/lib/{triplet}", "/usr/lib64", "/lib64", "/lib"):
        real = follow(tree, f"{directory}/libc.so.6")
        if tree.lookup(real) and (found := _GLIBC.search(tree.read(real))):
            return int(found[1]), int(found[2])
    return None


def _os_release(tree: Tree) -> dict[str, str]:
    """Returns the assignments of os-release(5)."""
    text = read_text(tree, "/etc/os-release") or read_text(tree, "/usr/lib/os-release") or ""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key: " ".join(_unquoted(value)) for key, _, value in pairs}


def _unquoted(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:
        return [value]
