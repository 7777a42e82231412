"""Root file systems as small as they can be, with the parts of this machine that flashing looks at, and real wheels."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.flashing.small_boards import MACHINE, Rootfs, make_wheel


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    """Wheels of a small edgefed, of something that it needs, and of something that calls itself pip."""
    directory = tmp_path / "wheels"
    make_wheel(directory, "edgefed", requires=("Needed_Part>=1", "elsewhere; sys_platform == 'win32'"))
    make_wheel(directory, "needed_part", "1.2")
    make_wheel(directory, "pip", "24.0")
    return directory


@pytest.fixture
def rootfs(tmp_path: Path) -> Rootfs:
    """Makes a root file system of this machine's architecture, merged /usr and all."""

    def make(name: str = "rootfs", *, python: str = f"3.{sys.version_info[1]}", l4t: str = "") -> Path:
        root = tmp_path / name
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
            (root / "etc/nv_tegra_release").write_text(
                f"# R{major} (release), REVISION: {rest}, GCID: 1, BOARD: t186\n"
            )
        return root

    return make
