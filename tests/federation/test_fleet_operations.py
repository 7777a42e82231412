"""An operator at work on a running federation: real agents, aggregator, broker and command line."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fleet import Agent
from tests.federation.stand_in import federation_toml, make_paper_model
from tests.federation.test_aggregator import Run
from tools.mosquitto import RunningMosquitto

pytestmark = [pytest.mark.broker, pytest.mark.federation]
PATIENCE_S = 90.0
NAMES = ("a", "b", "c")


class Operations:
    """A federation without an end, and the operator's command line."""

    def __init__(self, directory: Path, port: int) -> None:
        (directory / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
        model = make_paper_model(directory / "model")
        selection = "quorum = 1\ngather_s = 0.5\ndeadline_s = 30\n"
        toml = federation_toml(model, directory / "run", port, selection=selection)
        self.port = port
        self.run = Run(directory, toml.replace("rounds = 3", "rounds = 100000"))
        self.agents = {name: Agent(directory, name, port, 2, None) for name in NAMES}

    def fleet(self, *words: str) -> str:
        command = [sys.executable, "-m", "edgefed", "fleet", *words, "--run", str(self.run.directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def listed(self, *words: str) -> dict[str, Any]:
        return {one["device"]: one for one in json.loads(self.fleet("list", "--json", *words))["devices"]}

    def retained(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "edgefed", "status", "--fleet", "test", "--port", str(self.port), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
        devices: dict[str, Any] = json.loads(done.stdout)["devices"]
        return devices

    def rounds(self) -> dict[int, set[str]]:
        """Returns whose updates are in each round's sum."""
        with contextlib.suppress(FileNotFoundError):
            return {int(line["round"]): set(line["devices"]) for line in self.run.history()}  # type: ignore[call-overload]
        return {}

    def open_round(self) -> int:
        return max((int(one) for one in re.findall(r"round (\d+) of \d+ is open", self.run.log.read_text())), default=0)

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > until_s:
                logs = (self.run.log, *(agent.log for agent in self.agents.values()))
                raise AssertionError("\n".join([f"{what} does not come", *(log.read_text()[-4000:] for log in logs)]))
            time.sleep(0.05)

    def obeyed(self, text: str, *, times: int = 1) -> int:
        """Returns the round that was open when the aggregator had taken a wish."""
        self.until(text, lambda: self.run.log.read_text().count(text) >= times)
        return self.open_round()

    def without(self, device: str, after: int) -> None:
        """Sees two more rounds, none of which has the device."""
        self.until(f"rounds after {after}", lambda: max(self.rounds(), default=0) >= after + 2)
        assert all(device not in who for round_, who in self.rounds().items() if round_ > after)


@pytest.fixture
def operations(tmp_path: Path, mosquitto: RunningMosquitto) -> Iterator[Operations]:
    made = Operations(tmp_path, mosquitto.port)
    try:
        made.run.start()
        for agent in made.agents.values():
            agent.start()
        made.until("a round of all", lambda: set(NAMES) in made.rounds().values())
        made.until("word of all", lambda: set(made.listed()) == set(NAMES))
        yield made
    finally:
        made.run.end()
        for agent in made.agents.values():
            if agent.process is not None:
                agent.kill()


def test_pause_survives_a_restart_and_resume_takes_part_at_once(operations: Operations) -> None:
    operations.fleet("label", "a", "room=lab")
    assert list(operations.listed("--label", "room=lab")) == ["a"]
    assert operations.fleet("pause", "--label", "room=lab", "--reason", "too warm", "--yes") == (
        "a: gets no new task until it is resumed\n"
    )
    operations.without("a", operations.obeyed("device a: paused by the operator: too warm"))
    operations.until(
        "word of it", lambda: operations.listed()["a"]["state"]["note"] == "paused by the operator: too warm"
    )
    row = operations.listed()["a"]
    assert (row["standing"], row["state"]["status"]) == ("paused", "ready")
    assert row["plan"]["rank"] == 2
    assert row["profile"]["edgefed_version"]

    process = operations.run.process
    assert process is not None
    process.kill()
    process.wait()
    before = operations.open_round()
    operations.run.start()
    operations.without("a", before)

    operations.fleet("resume", "a")
    operations.until("a again", lambda: any("a" in who for one, who in operations.rounds().items() if one > before))
    assert operations.listed()["a"]["standing"] == "active"


def test_drain_lets_the_task_be_finished_and_remove_does_not(operations: Operations) -> None:
    operations.until("work of b", lambda: operations.listed()["b"]["busy"])
    operations.fleet("drain", "b")
    at = operations.obeyed("device b: gets no new task")
    operations.until("the end of its task", lambda: operations.listed()["b"]["standing"] == "drained")
    operations.without("b", at)

    operations.until("work of c", lambda: operations.retained()["c"]["state"]["status"] == "training")
    operations.fleet("remove", "c", "--yes", "--reason", "sold")
    at = operations.obeyed("device c: removed from the fleet by the operator: sold")
    operations.until(
        "c to know", lambda: "removed from the fleet by the operator: sold" in operations.agents["c"].log.read_text()
    )
    operations.until("c to be gone from the broker", lambda: "c" not in operations.retained())
    operations.without("c", at - 1 if "c" not in operations.rounds().get(at, set()) else at)
    assert set(operations.listed()) == {"a", "b"}
    assert operations.listed("--all")["c"]["standing"] == "removed"

    operations.fleet("resume", "c")
    operations.until("c again", lambda: any("c" in who for one, who in operations.rounds().items() if one > at + 1))
    operations.until("its profile", lambda: operations.retained().get("c", {}).get("profile") is not None)
