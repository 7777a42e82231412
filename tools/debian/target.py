"""What a package is made for: an architecture, and the Python of a release of Debian or Ubuntu."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from edgefed.errors import ConfigError
from edgefed.flashing.board import Board

__all__ = ["SUITES", "Target", "find_target"]

_MACHINES: Mapping[str, str] = {"amd64": "x86_64", "arm64": "aarch64"}
"""Architectures by Debian's names: what the kernel and wheels call them."""


@dataclass(frozen=True, slots=True)
class _Suite:
    name: str
    glibc: tuple[int, int]


SUITES: Mapping[tuple[int, int], _Suite] = {
    (3, 10): _Suite("Ubuntu 22.04 (JetPack 6)", (2, 35)),
    (3, 11): _Suite("Debian 12 (Raspberry Pi OS bookworm)", (2, 36)),
    (3, 12): _Suite("Ubuntu 24.04", (2, 39)),
    (3, 13): _Suite("Debian 13 (Raspberry Pi OS trixie)", (2, 41)),
}
"""By the version of their `python3` (packages.debian.org, packages.ubuntu.com: python3, libc6); no two share one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a package is made for.

    Attributes:
        architecture: as Debian names it.
        board: the same in the terms of flashing.
    """

    architecture: str
    board: Board

    @property
    def python(self) -> str:
        """The version of its Python, such as `3.11`."""
        return f"{self.board.python[0]}.{self.board.python[1]}"

    @property
    def python_dependencies(self) -> tuple[str, str]:
        """What the package asks of python3: wheels with compiled parts are good for one minor version."""
        major, minor = self.board.python
        return f"python3 (>= {major}.{minor}~)", f"python3 (<< {major}.{minor + 1}~)"


def find_target(architecture: str, python: str) -> Target:
    """Returns what a package for an architecture (empty: this machine's) and a Python is made for.

    Raises:
        ConfigError: there is no such architecture or no release with this Python.
    """
    here = {machine: name for name, machine in _MACHINES.items()}.get(platform.machine(), platform.machine())
    wanted = architecture or here
    if wanted not in _MACHINES:
        raise ConfigError(f"architecture {wanted}: a package is made for one of {', '.join(_MACHINES)}")
    by_python = {f"{major}.{minor}": (major, minor) for major, minor in SUITES}
    if python not in by_python:
        known = "; ".join(f"{version} ({SUITES[number].name})" for version, number in by_python.items())
        raise ConfigError(f"Python {python}: a package is made for one of {known}")
    suite = SUITES[by_python[python]]
    board = Board(architecture=_MACHINES[wanted], python=by_python[python], glibc=suite.glibc, system=suite.name)
    return Target(architecture=wanted, board=board)
