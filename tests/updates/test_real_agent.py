"""Updates of the agent as it is: its own wheel, environments by a real pip, and a broker that asks for certificates.

What the wheels need beside edgefed are hollow wheels of the same names, one of which leads to the libraries that the
tests run with: nothing is fetched, and training's are left out, as on a board without them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgefed
from edgefed.config import tomllib
from edgefed.flashing.release import bundle_wheelhouse
from edgefed.security.identities import AGGREGATOR
from edgefed.security.signatures import read_signer
from tests.flashing.small_boards import pip_wheel
from tests.security.secured import NAME, Secured, device
from tests.updates.releases import signer
from tests.updates.small_boards import HERE, TREE, SmallBoard, until, zipped

DEVICE = device("board-07")
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "opacus", "numpy", "scipy", "edgefed", "__editable__")
NAMED = re.compile(r"[A-Za-z0-9._-]+")


def own_wheel(directory: Path, version: str, **changed: str) -> None:
    """Writes the wheel of this very tree under another version, with the text of some modules changed."""
    package = Path(edgefed.__file__).parent
    files = {"edgefed/__init__.py": f'__version__ = "{version}"\n'}
    for path in sorted(package.rglob("*")):
        name = f"edgefed/{path.relative_to(package)}"
        if path.is_file() and path.suffix in (".py", ".json", ".toml") and name not in files:
            files[name] = path.read_text()
    for path in (TREE / "device_profiles").glob("*.toml"):
        files[f"edgefed/device_profiles/{path.name}"] = path.read_text()
    needed = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["dependencies"]
    path = directory / f"edgefed-{version}-py3-none-any.whl"
    zipped(path, "edgefed", version, {**files, **changed}, requires=needed)
    for requirement in needed:
        found = NAMED.match(requirement)
        assert found is not None
        if ";" not in requirement or sys.version_info < (3, 11):
            hollow(directory, found[0])


def hollow(directory: Path, name: str) -> None:
    version = importlib.metadata.version(name)
    file_name = name.replace("-", "_")
    files = {"libraries.pth": f"{directory.parent / 'libraries'}\n"} if name == "msgspec" else {}
    zipped(directory / f"{file_name}-{version}-py3-none-any.whl", file_name, version, files)


def wheels(parent: Path, version: str, **changed: str) -> Path:
    directory = parent / f"wheels-{version}"
    pip = pip_wheel()
    assert pip is not None
    own_wheel(directory, version, **changed)
    shutil.copy(pip, directory)
    return directory


class RealBoard(SmallBoard):
    """A board with the agent, in the fleet of a real broker."""

    def __init__(self, path: Path, secured: Secured) -> None:
        self.secured = secured
        super().__init__(path)

    def configure(self) -> None:
        place = self.secured.fleet.place(DEVICE)
        tls = "\n".join(f'tls_{name} = "{place / name}.pem"' for name in ("ca", "certificate", "key"))
        (self.config.parent / "data").mkdir()
        self.config.write_text(
            f'device = "{DEVICE.name}"\nfleet = "{NAME}"\nstate = "{self.state}"\n'
            f'[data]\npath = "{self.config.parent / "data"}"\n[profile]\nmeasure = "quick"\n'
            f'[broker]\nhost = "127.0.0.1"\nport = {self.secured.port}\nsigned = true\n{tls}\n'
        )

    def agent(self) -> list[str]:
        return ["-m", "edgefed.cli.agent_process", str(self.config), "-v"]

    def release(self, directory: Path, number: int) -> None:
        """Makes a release as an operator does, and delivers it."""
        place = self.secured.fleet.place(AGGREGATOR)
        bundle_wheelhouse(
            self.path / "made",
            directory,
            HERE,
            fleet=NAME,
            number=number,
            signer=read_signer(place / "certificate.pem", place / "key.pem"),
            at_unix_s=time.time(),
        ).path.rename(self.incoming / f"{number}.bundle")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[RealBoard]:
    with real_board(tmp_path) as made:
        yield made


@contextlib.contextmanager
def real_board(tmp_path: Path) -> Iterator[RealBoard]:
    """Gives a board that runs while the block does, in a fleet with a broker."""
    if pip_wheel() is None:
        pytest.skip("no wheel of pip is here")
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(HEAVY):
            (libraries / path.name).symlink_to(path)
    secured = Secured(tmp_path)
    secured.enroll(DEVICE)
    with secured.running():
        board = RealBoard(tmp_path / "board", secured)
        board.flash(wheels(tmp_path, "0.1.1"))
        board.boot()
        try:
            yield board
        finally:
            board.power_cut()


@pytest.mark.broker
def test_a_good_release_then_one_that_crashes_then_one_of_a_stranger(board: RealBoard, tmp_path: Path) -> None:
    until(lambda: board.agent_runs_in(board.in_use))
    assert board.health.version == "0.1.1"

    board.release(wheels(tmp_path, "0.2.0"), 2)
    done = board.update()
    assert done.returncode == 0, done.stderr
    assert (board.result.outcome, board.result.release) == ("installed", "0.2.0")
    assert board.agent_runs_in(board.in_use)
    assert (board.health.version, board.version()) == ("0.2.0", "0.2.0")

    main = (TREE / "edgefed/cli/agent_process.py").read_text()
    crash = main.replace("    manager = service_manager()\n", '    raise RuntimeError("broken")\n')
    assert crash != main
    good, starts = board.in_use, board.systemd.starts
    board.release(wheels(tmp_path, "0.3.0", **{"edgefed/cli/agent_process.py": crash}), 3)
    done = board.update()
    assert done.returncode == 0, done.stderr
    assert (board.result.outcome, board.result.release) == ("rolled-back", "0.3.0")
    assert board.result.reason == "it ended by itself 3 times"
    assert board.systemd.starts > starts + 3
    assert "RuntimeError: broken" in board.log.read_text()
    assert board.in_use == good
    until(lambda: board.agent_runs_in(good))
    assert board.health.version == "0.2.0"

    before, starts = board.snapshot(), board.systemd.starts
    board.deliver("stranger", wheels(tmp_path, "0.4.0"), number=4, fleet=NAME, signer=signer())
    done = board.update()
    assert done.returncode == 0, done.stderr
    assert board.result.outcome == "refused"
    assert "not of the fleet's authority" in board.result.reason
    assert (board.snapshot(), board.systemd.starts) == (before, starts)
