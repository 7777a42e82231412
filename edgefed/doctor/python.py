"""The Python that this environment runs on, and the packages without which there is no agent."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import struct
import sys

from edgefed import __version__
from edgefed.devices.sysfs import board_model, read_text
from edgefed.doctor.findings import Board, Findings, note, ok, problem

__all__ = ["look_at_python"]

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_SOON = (3, 11)
"""The next Python to be needed: torch 2.15 and transformers 5.23 have no builds for 3.10 any more."""


def look_at_python(board: Board) -> Findings:
    """Yields version, architecture and packages of the environment that the doctor runs in."""
    bits, machine = struct.calcsize("P") * 8, platform.machine()
    where = board_model(board.root) or "this machine"
    yield ok(
        f"edgefed {__version__} on Python {platform.python_version()}, {bits} bits on {machine}, {where} "
        f"({sys.executable})"
    )
    if bits < 64:
        yield note(
            f"this is a {bits}-bit Python; torch and bitsandbytes are built for 64 bits only, so it cannot train",
            "put a 64-bit system onto the board (Raspberry Pi OS and Debian call it arm64)",
        )
    if _is_musl():
        yield note("this system's C library is musl, for which torch has no builds", "use a system with glibc")
    if sys.version_info < _SOON:
        yield note(f"Python {platform.python_version()} still works, and new releases of torch no longer support it")
    if board.root.joinpath("etc/nv_tegra_release").exists():
        release = (read_text(board.root / "etc/nv_tegra_release") or "").splitlines()[:1]
        yield ok(f"Jetson Linux: {', '.join(release).lstrip('# ').partition(', GCID')[0]}")
    missing = _missing_packages()
    if missing:
        yield problem(
            f"packages that the agent needs are missing: {', '.join(missing)}", "pip install edgefed (into this venv)"
        )


def _is_musl() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] != "glibc"


def _missing_packages() -> list[str]:
    """Returns what the base install requires and is not there; nothing where edgefed runs from its source."""
    try:
        wanted = importlib.metadata.requires("edgefed") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    names = [_NAME.match(requirement) for requirement in wanted if ";" not in requirement]
    return [name[0] for name in names if name is not None and not _is_installed(name[0])]


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
