"""Real wheels and root file systems, as small as they can be, of this machine's kind."""

from __future__ import annotations

import platform
import shutil
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


def make_rootfs(root: Path, *, python: str = f"3.{sys.version_info[1]}", l4t: str = "") -> Path:
    """Makes a root file system of this machine's architecture, merged /usr and all, and returns it."""
    for directory in ("etc/systemd/system", "usr/bin", "usr/sbin", "usr/lib/systemd", "opt", "var/lib"):
        (root / directory).mkdir(parents=True)
    for link in ("bin", "sbin", "lib"):
        (root / link).symlink_to(f"usr/{link}")
    shutil.copy(Path("/bin/sh").resolve(), root / "usr/bin/dash")
    (root / "usr/bin/sh").symlink_to("/usr/bin/dash")  # absolute, as the board sees it
    (root / "usr/lib/systemd/systemd").write_bytes(b"")
    (root / "usr/bin" / f"python{python}").write_bytes(b"")
    (root / "usr/bin/python3").symlink_to(f"python{python}")
    venv = root / "usr/lib" / f"python{python}" / "venv"
    venv.mkdir(parents=True)
    (venv / "__main__.py").write_bytes(b"")
    (root / "usr/lib/os-release").write_text('PRETTY_NAME="Test Linux 1 (small)"\nID=test\n')
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    libc = root / "usr/lib" / f"{MACHINE}-linux-gnu" / "libc.so.6"
    libc.parent.mkdir()
    libc.write_bytes(b"\x7fELF...GNU C Library (Test GLIBC 2.36-9) stable release version 2.36.\n")
    if l4t:
        major, _, rest = l4t.partition(".")
        (root / "etc/nv_tegra_release").write_text(f"# R{major} (release), REVISION: {rest}, GCID: 1, BOARD: t186\n")
    return root
