"""What becomes of a start, from what systemd and the journal say."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from edgefed.flashing import ssh_start
from edgefed.flashing.ssh_start import AGENT, FIRST_BOOT, State, judge, wait

GONE = State("inactive", "success")
RUNS = State("active", "success")
CRASHED = State("activating", "exit-code")
STARTING = "edgefed first boot: starting the agent"
RESTARTS = [f"{AGENT}: Scheduled restart job, restart counter is at {count}." for count in (41, 42, 43)]


@pytest.mark.parametrize(
    ("building", "agent", "journal", "verdict"),
    [
        (GONE, RUNS, [STARTING], "up"),
        (RUNS, GONE, ["edgefed first boot: building"], "waiting"),
        (RUNS, RUNS, [], "waiting"),  # an upgrade: the old agent runs while the new environment is built
        (RUNS, CRASHED, RESTARTS, "waiting"),  # or does not: the upgrade may mend it
        (GONE, CRASHED, [*RESTARTS, STARTING, RESTARTS[0]], "waiting"),
        (GONE, State("deactivating", "success"), [*RESTARTS, STARTING], "waiting"),
        (GONE, GONE, [], "waiting"),
        (GONE, State("activating", "success"), [], "waiting"),
        (GONE, CRASHED, RESTARTS[:1], "waiting"),
        (GONE, CRASHED, [STARTING, *RESTARTS], "failed"),
        (GONE, State("failed", "exit-code"), [], "failed"),
        (State("activating", "exit-code"), GONE, [], "failed"),
        (RUNS, GONE, ["edgefed first boot: failed: what went wrong stands above"], "failed"),
    ],
)
def test_the_verdict(building: State, agent: State, journal: list[str], verdict: str) -> None:
    assert judge({FIRST_BOOT: building, AGENT: agent}, journal) == verdict


def test_units_that_systemd_says_nothing_about_are_waited_for() -> None:
    assert judge({}, []) == "waiting"


class Said:
    """A board whose units are up, and whose journal says something."""

    host, alive = "nano", True

    def __init__(self, journal: str) -> None:
        states = (
            f"Id={FIRST_BOOT}\nActiveState=inactive\nResult=success\n\nId={AGENT}\nActiveState=active\nResult=success\n"
        )
        self._answer = f"{states}\x1e{journal}".encode()

    def run(self, _script: str, *_arguments: str, stdin: bytes = b"") -> bytes:
        assert not stdin
        return self._answer

    def send(self, script: str, *arguments: str, blocks: Iterable[bytes]) -> None:
        raise NotImplementedError


def test_what_a_board_says_commands_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_start, "_POLL_S", 0.0)
    told: list[str] = []
    wait(Said("up\n\x1b]0;another title\x07\n"), 0, told.append)
    assert told == ["up", "\\u001b]0;another title\\u0007"]
