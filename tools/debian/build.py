"""Builds the agent's Debian package: `python -m tools.debian.build [--architecture arm64] [--python 3.11] [DIRECTORY]`.

The same sources and wheels give the same package, byte for byte: every file has the time of SOURCE_DATE_EPOCH
(https://reproducible-builds.org/specs/source-date-epoch/), which is the last commit's where it is not set.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgefed.errors import ConfigError, EdgefedError, FlashError
from edgefed.files import temporary_beside
from edgefed.flashing.wheelhouse import read_wheelhouse
from tools.debian.package import Package, stage
from tools.debian.target import Target, find_target
from tools.debian.wheels import build_project, download

__all__ = ["build", "main"]

PROJECT = Path(__file__).resolve().parents[2]
_NO_CHECKOUT_S = 1_580_601_600  # 2020-02-02, as hatchling takes where nothing says when


def build(target: Target, wheels: Path, directory: Path, *, maintainer: str, epoch_s: int) -> Path:
    """Builds the package of the wheels in a directory and returns its path below `directory`.

    Raises:
        FlashError: the wheels do not fit, or dpkg-deb is missing or fails.
    """
    if shutil.which("dpkg-deb") is None:
        raise FlashError("dpkg-deb is not here, which builds packages: apt-get install dpkg")
    package = Package(
        target=target, wheels=read_wheelhouse(wheels, target.board), maintainer=maintainer, epoch_s=epoch_s
    )
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / package.file_name
    new = temporary_beside(path)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "root"
        stage(package, root)
        _settle(root, epoch_s)
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(root), str(new)]
        # One thread: xz cuts its stream into blocks where there are several.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch_s), "DPKG_DEB_THREADS_MAX": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        new.unlink(missing_ok=True)
        raise FlashError(f"dpkg-deb failed: {done.stderr.strip()}")
    new.replace(path)
    return path


def main(arguments: Sequence[str]) -> Path:
    """Builds what the command line asks for and returns the package's path."""
    asked = _parser().parse_args(arguments)
    target = find_target(asked.architecture, asked.python)
    epoch_s = _epoch_s()
    settings = {"maintainer": asked.maintainer, "epoch_s": epoch_s}
    if asked.wheelhouse is not None:
        return build(target, asked.wheelhouse, asked.directory, **settings)
    with tempfile.TemporaryDirectory() as temporary:
        wheels = Path(temporary) / "wheels"
        build_project(PROJECT, wheels, epoch_s=epoch_s)
        download(wheels, target.board, PROJECT / "constraints.txt", options=shlex.split(asked.pip_flags))
        return build(target, wheels, asked.directory, **settings)


def _settle(root: Path, epoch_s: int) -> None:
    """Gives everything its time, and directories the mode that they have whatever the umask of whoever builds."""
    for path in (root, *root.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (epoch_s, epoch_s))


def _epoch_s() -> int:
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given:
        if not given.isdecimal():
            raise ConfigError(f"SOURCE_DATE_EPOCH={given}: is not a number of seconds since 1970")
        return int(given)
    command = ["git", "-C", str(PROJECT), "log", "-1", "--format=%ct"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return _NO_CHECKOUT_S


def _parser() -> argparse.ArgumentParser:
    name = os.environ.get("DEBFULLNAME", "edgefed")
    address = os.environ.get("DEBEMAIL", "packages@edgefed.invalid")
    parser = argparse.ArgumentParser(prog="tools.debian.build", description="Build the agent's Debian package.")
    parser.add_argument("directory", nargs="?", type=Path, default=Path("dist"), help="where to write it")
    parser.add_argument("--architecture", default="", help="amd64 or arm64; this machine's where it is not given")
    parser.add_argument("--python", default="3.11", help="the system's: 3.10, 3.11, 3.12 or 3.13")
    parser.add_argument("--wheelhouse", type=Path, help="a directory of wheels to take, instead of fetching them")
    parser.add_argument("--maintainer", default=f"{name} <{address}>", help="as DEBFULLNAME and DEBEMAIL say")
    parser.add_argument("--pip-flags", default="", help="anything else for pip")
    return parser


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except EdgefedError as error:
        sys.exit(f"make deb: {error}")
