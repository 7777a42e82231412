"""Fixtures of boards and wheels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flashing.small_boards import Rootfs, make_rootfs, make_wheel
from tests.flashing.ssh_boards import make_running_root
from tools.sshd import RunningSshd, running_sshd


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
    """Makes root file systems of this machine's architecture."""
    return lambda name="rootfs", **options: make_rootfs(tmp_path / name, **options)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[RunningSshd]:
    """A board that runs, behind a real sshd."""
    with running_sshd(tmp_path / "sshd", make_running_root(tmp_path / "board")) as running:
        yield running
