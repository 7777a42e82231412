"""How a new agent is judged, with a service and a clock of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.updates.health import FILE, Health, HealthFile, read_health
from edgefed.updates.service import State
from edgefed.updates.trial import Patience, failure

PATIENCE = Patience(stays_s=60, comes_s=600, restarts=2)
PID = 100
Second = tuple[State, Health | None]


def up(connections: int = 1, *, pid: int = PID, environment: str = "new", connected: bool = True) -> Health:
    return Health(version="2", environment=environment, pid=pid, connected=connected, connections=connections)


def running(restarts: int = 0, pid: int = PID) -> State:
    return State(active=True, pid=pid, restarts=restarts)


STARTING = State(active=False, pid=PID, restarts=0)


class World:
    """A service whose story is told second by second; the last second lasts for ever."""

    def __init__(self, directory: Path, story: Sequence[Second]) -> None:
        self._directory = directory
        self._story = story
        self.now_s = 0.0
        self._show()

    def state(self) -> State:
        return self._story[min(int(self.now_s), len(self._story) - 1)][0]

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self._show()

    def _show(self) -> None:
        health = self._story[min(int(self.now_s), len(self._story) - 1)][1]
        (self._directory / FILE).write_bytes(msgspec.json.encode(health) if health else b"{")

    def judge(self) -> str:
        return failure(self, self._directory, "new", PATIENCE, clock=lambda: self.now_s, sleep=self.sleep)


def test_a_connection_that_lasts_is_enough(tmp_path: Path) -> None:
    world = World(tmp_path, [(STARTING, None)] * 5 + [(running(), up())])
    assert world.judge() == ""
    assert world.now_s == 5 + PATIENCE.stays_s


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ((STARTING, up()), "it was not ready after 600 s"),
        ((running(), None), "it was not ready after 600 s"),
        ((running(), up(environment="old")), "it was not ready after 600 s"),
        ((running(), up(pid=7)), "it was not ready after 600 s"),
        ((running(), up(connected=False)), "it was not connected to the broker after 600 s"),
        ((running(restarts=3), up()), "it ended by itself 3 times"),
    ],
)
def test_why_it_is_not_good(tmp_path: Path, last: Second, why: str) -> None:
    assert World(tmp_path, [(STARTING, None), (STARTING, None), last]).judge() == why


def test_the_connection_has_to_be_one(tmp_path: Path) -> None:
    story = [(running(), up(connections=second // 40)) for second in range(700)]
    assert World(tmp_path, story).judge() == "within 600 s, no connection to the broker lasted 60 s"


def test_so_does_the_process(tmp_path: Path) -> None:
    story = [(running(pid=second // 50), up(pid=second // 50)) for second in range(200)] + [(running(), up())]
    world = World(tmp_path, story)
    assert world.judge() == ""
    assert world.now_s == 200 + PATIENCE.stays_s


def test_what_ended_before_the_trial_does_not_count(tmp_path: Path) -> None:
    assert World(tmp_path, [(running(restarts=40), up())]).judge() == ""


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_only_a_connection_of_the_full_length_is_good(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int]
) -> None:
    story: list[Second] = []
    for number, length in enumerate(lengths):
        story += [(running(), up(number))] * length + [(running(), up(number, connected=False))]
    good = World(tmp_path_factory.mktemp("world"), story).judge() == ""
    assert good == (max(lengths) > PATIENCE.stays_s)


def test_an_agent_shows_when_its_connection_comes_and_goes(tmp_path: Path) -> None:
    environment = tmp_path / "environments" / "0123"
    environment.mkdir(parents=True)
    link = tmp_path / "venv"
    link.symlink_to(environment)
    file = HealthFile(tmp_path, str(link))
    link.unlink()
    assert read_health(tmp_path) is None
    seen = []
    for event in (file.started, file.connected, file.disconnected, file.connected):
        event()
        health = read_health(tmp_path)
        assert health is not None
        assert health.environment == "0123"
        seen.append((health.connected, health.connections))
    assert seen == [(False, 0), (True, 1), (False, 1), (True, 2)]
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_health_is_read_from_a_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(msgspec.json.encode(up()))
    (tmp_path / FILE).symlink_to("elsewhere")
    assert read_health(tmp_path) is None
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).write_bytes(msgspec.json.encode(up()))
    assert read_health(tmp_path) == up()


def test_an_agent_whose_disk_is_gone_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    HealthFile(tmp_path / "nowhere").connected()
    assert "cannot be shown" in caplog.text
