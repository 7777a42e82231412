"""Real wheels, as small as they can be, and what this machine is as a board."""

from __future__ import annotations

import platform
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from edgefed.flashing.board import Board

MACHINE = platform.machine()
HERE = Board(architecture=MACHINE, python=(sys.version_info[0], sys.version_info[1]), system="Test")


def make_wheel(
    directory: Path, name: str, version: str = "1.0", tags: str = "py3-none-any", requires: tuple[str, ...] = ()
) -> Path:
    """Writes a wheel with one empty package; an edgefed one has what the first boot looks for."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{version}-{tags}.whl"
    info = f"{name}-{version}.dist-info"
    packages = ["edgefed", "edgefed/cli", "edgefed/cli/agent_process"] if name == "edgefed" else [name]
    members = {f"{package}/__init__.py": "" for package in packages}
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {requirement}\n" for requirement in requires
    )
    members[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tags}\n"
    members[f"{info}/RECORD"] = "".join(f"{member},,\n" for member in (*members, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    return path


Rootfs = Callable[..., Path]
"""Makes a root file system: (name, python=, l4t=) → its directory."""
