"""The power goes between any two steps of an update: what is left boots, and the update is installed in the end.

`EDGEFED_POWER_CUTS=all` cuts at every step; without it, at one in a handful and at each of those of the switch.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefed.updates.record import MAX_TRIES
from tests.updates.small_boards import PATIENCE_S, SmallBoard, small_wheels, until, zipped

STEPS = "EDGEFED_TEST_STEPS"
CUT_AT = "EDGEFED_TEST_CUT_AT"
COMMANDS = ("cp", "ln", "mkdir", "mv", "rm", "sync", "touch")

# In the environment that the installer runs in: every change of a name in the home, and every program that is started.
HOOK = f"""\
import os, signal, sys
steps = os.environ.get("{STEPS}")

def step(what):
    with open(steps, "a") as file:
        file.write(what + "\\n")
    with open(steps) as file:
        done = len(file.readlines())
    if str(done) == os.environ.get("{CUT_AT}"):
        os.killpg(0, signal.SIGKILL)

def hook(event, args):
    if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "subprocess.Popen"):
        path = str(args[0])
        if "__pycache__" not in path and "show" not in str(args[1]):
            step(event + " " + " ".join(map(str, args[:2])))

if steps:
    sys.addaudithook(hook)
"""

# In the place of what the script calls, each with its own name.
WRAPPER = """\
if [ -n "${%s-}" ]; then
    echo "%s $*" >> "$%s"
    [ "$(wc -l < "$%s")" != "${%s-}" ] || kill -s KILL 0
fi
%s"""


class Cut:
    """A board whose power can be cut at a step of the installer."""

    def __init__(self, board: SmallBoard) -> None:
        self.board = board
        self.steps = board.path / "steps"
        for name in COMMANDS:
            real = "exit 0" if name == "sync" else f'exec {shutil.which(name, path="/usr/bin:/bin")} "$@"'
            board.systemd.program(name, WRAPPER % (STEPS, name, STEPS, STEPS, CUT_AT, real))

    def begin(self, at: int = 0) -> subprocess.Popen[bytes]:
        """Starts the installer; at that step, all of it is killed."""
        self.steps.unlink(missing_ok=True)
        self.steps.touch()
        home = str(self.board.home.path)
        return subprocess.Popen(
            ["sh", f"{home}/bin/update", home, str(self.board.config), "--stays", "0.2", "--comes", str(PATIENCE_S)],
            env={**self.board.systemd.environment(), STEPS: str(self.steps), CUT_AT: str(at)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def update(self, at: int = 0) -> list[str]:
        """Runs the installer until that step, or to its end, and returns the steps that it began."""
        assert self.begin(at).wait(PATIENCE_S) == (-signal.SIGKILL if at else 0)
        return self.steps.read_text().splitlines()


@pytest.fixture(scope="module")
def flashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board that was flashed and has booted, and a release on its way to it; to be copied."""
    path = tmp_path_factory.mktemp("flashed") / "board"
    wheels = small_wheels(path.parent / "first", "1.0")
    zipped(wheels / "hook-1.0-py3-none-any.whl", "hook", "1.0", {"hook.pth": "import hook\n", "hook.py": HOOK})
    board = SmallBoard(path)
    board.flash(wheels)
    board.boot()
    board.deliver("second", small_wheels(path.parent / "second", "2.0"), number=20)
    board.power_cut()
    return path


Boards = Callable[[], SmallBoard]


@pytest.fixture
def boards(flashed: Path, tmp_path: Path) -> Iterator[Boards]:
    made = []

    def make() -> SmallBoard:
        path = tmp_path / f"board-{len(made)}"
        shutil.copytree(flashed, path, symlinks=True, ignore=shutil.ignore_patterns("systemd"))
        config = path / "etc/agent.toml"
        config.write_text(config.read_text().replace(str(flashed), str(path)))
        made.append(SmallBoard(path))
        return made[-1]

    yield make
    for board in made:
        board.power_cut()


def check_going_on(cut: Cut, old: str) -> None:
    """Boots a board after a power cut, and sees that it works at once and has the new release in the end."""
    board = cut.board
    board.power_cut()
    kept = not board.home.path.joinpath("venv.old").is_symlink() and board.in_use != old
    board.boot()
    assert (board.in_use != old) == kept, "what was not found good is not in use"
    until(lambda: board.agent_runs_in(board.in_use))
    assert board.is_triggered or board.result.outcome == "installed"
    if board.is_triggered:
        cut.update()
    assert (board.result.outcome, board.record.highest_number, board.version()) == ("installed", 20, "2.0")
    assert board.record.tries == {}
    until(lambda: board.agent_runs_in(board.in_use))
    assert [path.name for path in board.environments.iterdir()] == [board.in_use]
    places = (board.home.path, board.home.updates, board.incoming)
    left = {path.name for place in places for path in place.iterdir()}
    assert left == {"bin", "environments", "lock", "record.json", "updates", "venv", "wheelhouse"}


def chosen(steps: list[str]) -> list[int]:
    """Returns the numbers of the steps to cut at: all, or those of the switch that are not like another."""
    if os.environ.get("EDGEFED_POWER_CUTS") == "all":
        return list(range(1, len(steps) + 1))
    switch = (r"ln .* venv\.old", r"mv .* venv$", "rm -f venv.old")
    telling = ("cp ", *switch, r"os\.remove .*/trial\.json")
    found = [number for number, step in enumerate(steps, 1) if re.match("|".join(telling), step)]
    assert len(found) == len(telling)
    return found


def test_the_power_goes_between_two_steps(boards: Boards) -> None:
    whole = Cut(boards())
    whole.board.boot()
    old = whole.board.in_use
    steps = whole.update()
    assert whole.board.result.outcome == "installed"
    for number in chosen(steps):
        cut = Cut(boards())
        cut.board.boot()
        cut.update(number)
        check_going_on(cut, old)


def test_a_release_that_ends_the_power_each_time_is_given_up(boards: Boards, tmp_path: Path) -> None:
    cut = Cut(boards())
    board = cut.board
    board.boot()
    old = board.in_use
    (board.incoming / "second.bundle").unlink()
    board.deliver("third", small_wheels(tmp_path / "third", "3.0", "is not connected"))
    for _ in range(MAX_TRIES):
        installer = cut.begin()
        until(lambda: board.in_use != old)
        os.killpg(installer.pid, signal.SIGKILL)
        installer.wait()
        board.power_cut()
        board.boot()
        assert board.in_use == old
        assert board.record.result is None, "it is not over"
    cut.update()
    assert (board.result.outcome, board.result.may_retry) == ("rolled-back", False)
    assert "cut short" in board.result.reason
    assert not board.is_triggered
    until(lambda: board.agent_runs_in(old))
