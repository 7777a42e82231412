"""The whole way of a release: from `edgefed fleet update WHEELS` to the new agent that says what became of it.

Everything is as it is on a board but for systemd: the broker, the aggregator, the agent in an environment that pip has
built, the installer.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefed.coordinator.sightings import read_sightings
from edgefed.security.identities import AGGREGATOR
from tests.federation.stand_in import federation_toml, make_paper_model
from tests.federation.test_aggregator import Run
from tests.security.secured import Secured
from tests.updates.small_boards import TREE, until
from tests.updates.test_real_agent import DEVICE, RealBoard, real_board, wheels

pytestmark = [pytest.mark.broker, pytest.mark.federation]
PATIENCE_S = 120


@contextlib.contextmanager
def aggregator(path: Path, secured: Secured) -> Iterator[Run]:
    """Gives an aggregator whose first round waits for devices that do not come."""
    place = secured.fleet.place(AGGREGATOR)
    tls = "\n".join(f'tls_{name} = "{place / name}.pem"' for name in ("ca", "certificate", "key"))
    lines = f'host = "127.0.0.1"\nsigned = true\n{tls}\n'
    model = make_paper_model(path / "model")
    run = Run(path, federation_toml(model, path / "run", secured.port, selection="quorum = 9\n", broker=lines))
    run.start()
    try:
        yield run
    finally:
        run.end()


@contextlib.contextmanager
def installer(board: RealBoard) -> Iterator[None]:
    """Runs the installer whenever the path unit would."""
    over = threading.Event()

    def look_after() -> None:
        while not over.wait(0.05):
            if any(board.incoming.glob("*.bundle")):
                board.update()

    thread = threading.Thread(target=look_after)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def edgefed(run: Run, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgefed", "fleet", *map(str, words), "-c", str(run.config)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def shown(run: Run) -> dict[str, Any]:
    document = json.loads(edgefed(run, "show", DEVICE.name, "--json").stdout or "{}")
    return document.get("profile") or {}


def test_from_wheels_to_the_new_agent_and_back_from_one_that_crashes(tmp_path: Path) -> None:
    with real_board(tmp_path) as board, aggregator(tmp_path, board.secured) as run, installer(board):
        until(lambda: shown(run).get("edgefed_version") == "0.1.1")
        until(lambda: read_sightings(run.directory)[DEVICE.name].architecture)  # what it is offered goes by that
        done = edgefed(run, "update", wheels(tmp_path, "0.2.0"), "--yes")
        assert done.returncode == 0, done.stderr + run.log.read_text() + board.log.read_text()
        assert f"{DEVICE.name}\tinstalled" in done.stdout
        profile = shown(run)
        assert (profile["edgefed_version"], profile["release"]["name"]) == ("0.2.0", "0.2.0")

        main = (TREE / "edgefed/cli/agent_process.py").read_text()
        crash = main.replace("    manager = service_manager()\n", '    raise RuntimeError("broken")\n')
        assert crash != main
        broken = wheels(tmp_path, "0.3.0", **{"edgefed/cli/agent_process.py": crash})
        done = edgefed(run, "update", broken, "--yes")
        assert done.returncode == 18
        assert f"{DEVICE.name}\trolled-back\t\tit ended by itself 3 times" in done.stdout, done.stderr
        assert shown(run)["edgefed_version"] == "0.2.0"
