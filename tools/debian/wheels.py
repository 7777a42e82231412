"""The wheels in a package: the project's own, and those of the base install that the registry has for the target."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from edgefed.errors import FlashError
from edgefed.flashing.board import Board
from edgefed.flashing.wheelhouse import pip_options

__all__ = ["build_project", "download", "needed_on"]

_PASSES = 5  # each brings what the wheels of the one before ask for


def build_project(project: Path, directory: Path, *, epoch_s: int) -> Path:
    """Builds the wheel of the project at `project` and returns its path below `directory`.

    Raises:
        FlashError: pip could not.
    """
    _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(project), SOURCE_DATE_EPOCH=str(epoch_s))
    (wheel,) = directory.glob("edgefed-*.whl")
    return wheel


def download(directory: Path, board: Board, constraints: Path, *, options: Iterable[str] = ()) -> None:
    """Fetches into `directory` what the wheels in it need on the board, and pip.

    pip chooses wheels for the board, but evaluates conditions of requirements and constraints for the Python that it
    runs on. So the constraints that it gets are those that hold on the board, and what only the board needs is asked
    for by name until nothing is missing.

    Args:
        directory: with the project's wheel.
        board: what they are for.
        constraints: pip's file of versions.
        options: more options for pip, such as another index.

    Raises:
        FlashError: pip could not, or something is missing in the end.
    """
    lines = [line for line in constraints.read_text().splitlines() if line and not line.startswith("#")]
    wanted = ["pip"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.writelines(f"{pin.name}{pin.specifier}\n" for pin in needed_on(lines, board))
        pins.flush()
        fixed = ["--quiet", "--dest", str(directory), *pip_options(board), "--constraint", pins.name, *options]
        for _ in range(_PASSES):
            _pip("download", *fixed, *map(str, directory.glob("edgefed-*.whl")), *wanted)
            if not (missing := sorted(_missing(directory, board))):
                return
            wanted += missing
    raise FlashError(f"{directory}: still without {', '.join(missing)} for {board.words}")


def needed_on(requirements: Iterable[str], board: Board) -> Iterator[Requirement]:
    """Yields the requirements whose conditions hold on a board, without extras."""
    version = f"{board.python[0]}.{board.python[1]}"
    environment = {
        "extra": "",
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": board.architecture,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{version}.0",
        "python_version": version,
        "sys_platform": "linux",
    }
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield requirement


def _missing(directory: Path, board: Board) -> Iterator[str]:
    wheels = list(directory.glob("*.whl"))
    present = {parse_wheel_filename(wheel.name)[0] for wheel in wheels}
    for wheel in wheels:
        for requirement in needed_on(_requirements(wheel), board):
            if canonicalize_name(requirement.name) not in present:
                yield f"{requirement.name}{requirement.specifier}"


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist") or []


def _pip(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise FlashError(f"pip {arguments[0]} failed with exit code {done.returncode}; its reasons stand above")
