"""A board that runs, as small as it can be: a root with the few programs of one, and a real sshd in front of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.flashing.small_boards import MACHINE, make_rootfs
from tools.sshd import missing

needs_sshd = pytest.mark.skipif(bool(why := missing()), reason=why)

PROGRAMS = (
    *("sh", "cat", "head", "tail", "stat", "readlink", "mkdir", "mv", "ln", "rm", "rmdir", "chmod", "sha256sum"),
    *("sync", "dd", "tar", "xargs", "id", "date", "sleep"),
)
_RECORDED = '#!/bin/sh\necho "{name} $*" >> /told\n[ ! -e "/answers/{name}-$1" ] || cat "/answers/{name}-$1"\n'
UP = """Id=edgefed-firstboot.service
ActiveState=inactive
Result=success

Id=edgefed-agent.service
ActiveState=active
Result=success
"""


def make_running_root(root: Path, *, busybox: str | None = None, **options: str) -> Path:
    """Makes a root file system that commands can run in; what is told to systemd is written to /told there.

    Args:
        root: its directory.
        busybox: the one program that is all of them there; None takes this machine's.
        options: for `make_rootfs`.
    """
    make_rootfs(root, **options)
    for directory in ("proc", "dev", "tmp", "run/systemd/system", "answers"):
        (root / directory).mkdir(parents=True)
    (root / f"usr/lib/{MACHINE}-linux-gnu/libc.so.6").unlink()
    for name in PROGRAMS:
        found = busybox or shutil.which(name)
        assert found is not None, name
        _install(Path(found).resolve(), root, name)
    for name in ("systemctl", "journalctl", "udevadm"):
        program(root, name, _RECORDED.format(name=name))
    (root / "answers/systemctl-show").write_text(UP)
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\npi:x:1000:1000::/:/bin/sh\n")
    return root


def program(root: Path, name: str, text: str) -> None:
    """Puts a script onto the board."""
    path = root / "usr/bin" / name
    path.write_text(text)
    path.chmod(0o755)


def told(root: Path) -> list[str]:
    """Returns what was told to systemd."""
    path = root / "told"
    return path.read_text().splitlines() if path.exists() else []


def _install(binary: Path, root: Path, name: str) -> None:
    """Copies a program and the libraries that it needs."""
    target = root / "usr/bin" / name
    target.unlink(missing_ok=True)
    shutil.copy(binary, target)
    # A program that needs none makes ldd fail.
    listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"(/\S+)", listed):
        place = root / os.path.normpath(library).lstrip("/")
        if place.exists():
            continue
        if place.parts[len(root.parts)] == "lib64":
            place.parent.mkdir(exist_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(library).resolve(), place)
