"""The wheels that a board builds its Python environment from, without a network: whether they fit, and their lock.

File names and tags are those of the binary distribution format
(https://packaging.python.org/en/latest/specifications/binary-distribution-format/) and of platform compatibility tags.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from edgefed.errors import FlashError
from edgefed.files import hash_file, in_shell
from edgefed.flashing.board import Board

__all__ = ["Wheel", "lock", "pip_options", "read_wheelhouse", "unfit"]

_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._]*)-(?P<version>[A-Za-z0-9_.!+]+)(-\d[A-Za-z0-9_.]*)?"
    r"-(?P<python>[A-Za-z0-9_.]+)-(?P<abi>[A-Za-z0-9_.]+)-(?P<platform>[A-Za-z0-9_.]+)\.whl"
)
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_(\w+)")
_OLD_MANYLINUX = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
"""The C library of the names without numbers (PEP 600)."""
_BUILT_FOR = [(2, minor) for minor in (17, 24, 26, 27, 28, 31, 34, 35, 39)]
_UNKNOWN_GLIBC = [(2, 17), (2, 28)]
_NEEDED = ("edgefed", "pip")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel.

    Attributes:
        path: of the file here.
        name: of the distribution, normalized.
        version: of it.
        python_tags, abi_tags, platform_tags: any of which must fit.
        requires: names of the distributions that it needs whatever the machine, normalized.
        sha256: of the file.
    """

    path: Path
    name: str
    version: str
    python_tags: tuple[str, ...]
    abi_tags: tuple[str, ...]
    platform_tags: tuple[str, ...]
    requires: frozenset[str]
    sha256: str


def read_wheelhouse(directory: Path, board: Board) -> tuple[Wheel, ...]:
    """Returns the wheels in a directory, by file name.

    Raises:
        FlashError: there are none, one does not fit the board or cannot be read, or what they need is not there.
    """
    paths = sorted(path for path in directory.glob("*") if path.is_file()) if directory.is_dir() else []
    if not paths:
        raise FlashError(f"{directory}: there are no wheels; {_way_out(directory, board)}")
    wheels = tuple(map(_read, paths))
    if problems := [problem for wheel in wheels if (problem := unfit(wheel, board))]:
        raise FlashError(f"{directory} does not fit {board.words}: {_some(problems)}; {_way_out(directory, board)}")
    versions: dict[str, set[str]] = defaultdict(set)
    for wheel in wheels:
        versions[wheel.name].add(wheel.version)
    if double := [f"{name} ({', '.join(sorted(found))})" for name, found in versions.items() if len(found) > 1]:
        raise FlashError(f"{directory}: more than one version of {_some(double)}: leave the one that is wanted")
    needed = dict.fromkeys(_NEEDED, "edgefed")
    needed |= {name: wheel.name for wheel in wheels for name in wheel.requires}
    if missing := [f"{name} (for {why})" for name, why in sorted(needed.items()) if name not in versions]:
        raise FlashError(f"{directory}: there is no wheel of {_some(missing)}; {_way_out(directory, board)}")
    return wheels


def lock(wheels: Iterable[Wheel]) -> str:
    """Returns the requirements file that pins every wheel to its hash, for `pip install --require-hashes`."""
    hashes: dict[str, list[str]] = defaultdict(list)
    for wheel in wheels:
        hashes[f"{wheel.name}=={wheel.version}"].append(f"--hash=sha256:{wheel.sha256}")
    return "".join(f"{pin} {' '.join(sorted(given))}\n" for pin, given in sorted(hashes.items()))


def pip_options(board: Board) -> list[str]:
    """Returns what makes `pip download` fetch wheels for a board instead of for the machine that it runs on."""
    # pip takes a name of this kind as it stands: one for each C library that wheels are built for, as far as the board
    # has it, and the two commonest where nobody knows what it has.
    built_for = _UNKNOWN_GLIBC if board.glibc is None else [glibc for glibc in _BUILT_FOR if glibc <= board.glibc]
    platforms = [f"linux_{board.architecture}"]
    platforms += [f"manylinux_{major}_{minor}_{board.architecture}" for major, minor in built_for]
    version = f"{board.python[0]}.{board.python[1]}"
    options = ["--only-binary=:all:", "--python-version", version]
    return [*options, *(word for platform in platforms for word in ("--platform", platform))]


def unfit(wheel: Wheel, board: Board) -> str:
    """Returns why a wheel cannot be installed on the board; an empty text where it can."""
    if not any(_python_fits(python, abi, board) for python in wheel.python_tags for abi in wheel.abi_tags):
        return f"{wheel.path.name} is for another Python"
    misfits = [_platform_misfit(platform, board) for platform in wheel.platform_tags]
    return "" if "" in misfits else f"{wheel.path.name} {misfits[0]}"


def _python_fits(python: str, abi: str, board: Board) -> bool:
    found = re.fullmatch(r"(py|cp)(\d)(\d*)", python)
    if found is None or int(found[2]) != board.python[0]:
        return False
    minor = int(found[3] or 0)
    if found[1] == "py" or abi in ("abi3", "none"):
        # A pure wheel for CPython of one version is good for that one and later ones, as an abi3 one is.
        return minor <= board.python[1] and abi in ("none", "abi3")
    return minor == board.python[1] and abi == python


def _platform_misfit(platform: str, board: Board) -> str:
    if platform in ("any", f"linux_{board.architecture}"):
        return ""
    for old, glibc in _OLD_MANYLINUX.items():
        if platform.startswith(f"{old}_"):
            platform = f"manylinux_{glibc[0]}_{glibc[1]}_{platform.removeprefix(f'{old}_')}"
    found = _MANYLINUX.fullmatch(platform)
    if found is None or found[3] != board.architecture:
        return f"is for {platform}"
    needed = (int(found[1]), int(found[2]))
    if board.glibc is not None and needed > board.glibc:
        return f"needs glibc {needed[0]}.{needed[1]}, and the board has {board.glibc[0]}.{board.glibc[1]}"
    return ""


def _read(path: Path) -> Wheel:
    named = _NAME.fullmatch(path.name)
    if named is None:
        raise FlashError(f"{path}: is not a wheel; a wheelhouse holds nothing else")
    name = _normalized(named["name"])
    try:
        with zipfile.ZipFile(path) as archive:
            (metadata,) = [
                member for member in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", member)
            ]
            headers = HeaderParser().parsestr(archive.read(metadata).decode())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FlashError(f"{path}: cannot be read as a wheel: {error}") from error
    return Wheel(
        path,
        name,
        str(headers["Version"] or named["version"]),
        tuple(named["python"].split(".")),
        tuple(named["abi"].split(".")),
        tuple(named["platform"].split(".")),
        frozenset(_unconditional(headers.get_all("Requires-Dist") or ())),
        hash_file(path),
    )


def _unconditional(requirements: Sequence[str]) -> Iterable[str]:
    """Yields the names of requirements without a marker: those with one depend on the machine, and pip sees to them."""
    for requirement in requirements:
        if ";" not in requirement and (named := _REQUIREMENT.match(requirement)):
            yield _normalized(named[1])


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _some(problems: Sequence[str]) -> str:
    return "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")


def _way_out(directory: Path, board: Board) -> str:
    if board.glibc is not None and board.glibc < _BUILT_FOR[0]:
        oldest, has = (f"{major}.{minor}" for major, minor in (_BUILT_FOR[0], board.glibc))
        return (
            f"nobody builds wheels for glibc {has}, as they are for {oldest} and later: take a newer release of the "
            "board's system, or run the agent in a container that has one"
        )
    place = in_shell(directory)
    command = f"pip download --dest {place} --find-links {place} {' '.join(pip_options(board))} edgefed pip"
    return (
        f"fill it with: {command} (edgefed itself, where pip finds none, is made first, in a clone of it: pip wheel "
        f"--no-deps --wheel-dir {in_shell(directory.absolute())} . ; to train, it needs 'edgefed[train]': fetch that "
        "with the pip of a machine of the board's kind, as pip asks the machine that it runs on what torch needs)"
    )
