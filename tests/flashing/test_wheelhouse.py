"""Wheels that fit a board and wheels that do not, and the lock that pins them; pip itself is asked about the lock."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgefed.errors import FlashError
from edgefed.flashing.board import Board
from edgefed.flashing.wheelhouse import lock, pip_options, read_wheelhouse, unfit
from tests.flashing.small_boards import HERE, make_wheel

ORIN = Board(architecture="aarch64", python=(3, 10), glibc=(2, 35), system="Ubuntu 22.04", l4t="36.4.3")


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ("py3-none-any", ""),
        ("py2.py3-none-any", ""),
        ("py310-none-any", ""),
        ("cp310-cp310-linux_aarch64", ""),
        ("cp38-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64", ""),
        ("cp310-cp310-manylinux_2_35_aarch64", ""),
        ("py3-none-manylinux2014_aarch64", ""),
        ("py2-none-any", "another Python"),
        ("py311-none-any", "another Python"),
        ("cp311-cp311-linux_aarch64", "another Python"),
        ("cp39-cp39-linux_aarch64", "another Python"),
        ("cp311-abi3-linux_aarch64", "another Python"),
        ("cp310-cp310d-linux_aarch64", "another Python"),
        ("pp310-pypy310_pp73-linux_aarch64", "another Python"),
        ("cp310-cp310-manylinux_2_39_aarch64", "needs glibc 2.39, and the board has 2.35"),
        ("cp310-cp310-manylinux_2_17_x86_64", "is for manylinux_2_17_x86_64"),
        ("cp310-cp310-musllinux_1_2_aarch64", "is for musllinux_1_2_aarch64"),
        ("cp310-cp310-win_amd64", "is for win_amd64"),
    ],
)
def test_tags_decide_whether_a_wheel_fits(tmp_path: Path, tags: str, problem: str) -> None:
    make_wheel(tmp_path, "edgefed")
    make_wheel(tmp_path, "pip")
    path = make_wheel(tmp_path, "part", tags=tags)
    if problem:
        with pytest.raises(FlashError, match=problem) as refused:
            read_wheelhouse(tmp_path, ORIN)
        assert path.name in str(refused.value)
        assert "L4T 36.4.3, JetPack 6, aarch64, Python 3.10" in str(refused.value)
        assert "--platform manylinux_2_35_aarch64" in str(refused.value)
        assert "--platform manylinux_2_24_aarch64" in str(refused.value), "bitsandbytes has that one alone"
        assert "needs 'edgefed[train]'" in str(refused.value)
        assert "manylinux_2_39" not in str(refused.value).partition("fill it with")[2]
    else:
        assert [wheel.name for wheel in read_wheelhouse(tmp_path, ORIN)] == ["edgefed", "part", "pip"]


def test_a_board_whose_c_library_is_unknown_takes_any(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "part", tags="cp310-cp310-manylinux_2_99_aarch64")
    make_wheel(tmp_path, "edgefed")
    make_wheel(tmp_path, "pip")
    board = dataclasses.replace(ORIN, glibc=None)
    assert all(unfit(wheel, board) == "" for wheel in read_wheelhouse(path.parent, board))


@pytest.mark.parametrize(
    ("glibc", "minors"), [(None, [17, 28]), ((2, 17), [17]), ((2, 28), [17, 24, 26, 27, 28]), ((2, 13), [])]
)
def test_pip_is_asked_for_the_c_libraries_that_the_board_may_have(
    glibc: tuple[int, int] | None, minors: list[int]
) -> None:
    options = pip_options(dataclasses.replace(ORIN, glibc=glibc))
    platforms = [value for option, value in itertools.pairwise(options) if option == "--platform"]
    assert platforms == ["linux_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in minors)]


def test_no_command_is_named_where_there_are_no_wheels_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(FlashError, match=r"nobody builds wheels for glibc 2\.13, as they are for 2\.17") as refused:
        read_wheelhouse(tmp_path, dataclasses.replace(ORIN, glibc=(2, 13)))
    assert "pip download" not in str(refused.value)


def test_a_wheel_of_ones_own_edgefed_is_found_by_the_command_that_fills_the_wheelhouse(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    with pytest.raises(FlashError, match=f"pip wheel --no-deps --wheel-dir {wheels} [.]") as refused:
        read_wheelhouse(wheels, HERE)
    make_wheel(wheels, "edgefed")  # as that makes one
    make_wheel(tmp_path / "index", "pip")
    found = re.search(r"fill it with: pip (download .* edgefed pip) [(]", str(refused.value))
    assert found is not None
    command = [sys.executable, "-m", "pip", *found[1].split(), "--no-index", "--find-links", str(tmp_path / "index")]
    subprocess.run(command, check=True, capture_output=True)
    assert [wheel.name for wheel in read_wheelhouse(wheels, HERE)] == ["edgefed", "pip"]


def test_pip_accepts_the_lock_and_refuses_a_changed_wheel(wheelhouse: Path, tmp_path: Path) -> None:
    pins = tmp_path / "requirements.lock"
    pins.write_text(lock(read_wheelhouse(wheelhouse, HERE)))
    digest = hashlib.sha256((wheelhouse / "edgefed-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert f"edgefed==1.0 --hash=sha256:{digest}\n" in pins.read_text()
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-index"]
    command += ["--find-links", str(wheelhouse), "--require-hashes", "--requirement", str(pins)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "needed_part-1.2" in done.stdout.replace("needed-part", "needed_part")
    make_wheel(wheelhouse, "needed_part", "1.2", requires=("pip",))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_what_is_missing_is_named_with_who_needs_it(wheelhouse: Path) -> None:
    (wheelhouse / "needed_part-1.2-py3-none-any.whl").unlink()
    (wheelhouse / "pip-24.0-py3-none-any.whl").unlink()
    with pytest.raises(FlashError, match=r"no wheel of needed-part \(for edgefed\); pip \(for edgefed\)"):
        read_wheelhouse(wheelhouse, HERE)


def test_two_versions_are_refused(wheelhouse: Path) -> None:
    make_wheel(wheelhouse, "needed_part", "1.3")
    with pytest.raises(FlashError, match=r"more than one version of needed-part \(1\.2, 1\.3\)"):
        read_wheelhouse(wheelhouse, HERE)


def test_what_is_no_wheel_is_refused(wheelhouse: Path, tmp_path: Path) -> None:
    with pytest.raises(FlashError, match="there are no wheels; fill it with: pip download"):
        read_wheelhouse(tmp_path / "nowhere", HERE)
    broken = wheelhouse / "part-1.0-py3-none-any.whl"
    broken.write_bytes(b"PK\3\4 cut off")
    with pytest.raises(FlashError, match=r"part-1\.0-py3-none-any\.whl: cannot be read as a wheel"):
        read_wheelhouse(wheelhouse, HERE)
    broken.rename(wheelhouse / "edgefed-1.0.tar.gz")
    with pytest.raises(FlashError, match=r"edgefed-1\.0\.tar\.gz: is not a wheel"):
        read_wheelhouse(wheelhouse, HERE)
