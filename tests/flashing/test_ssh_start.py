"""What becomes of a start, from what systemd and the journal say."""

from __future__ import annotations

import pytest

from edgefed.flashing.ssh_start import AGENT, FIRST_BOOT, State, judge

GONE = State("inactive", "success", 0)
RUNS = State("active", "success", 0)


@pytest.mark.parametrize(
    ("building", "agent", "journal", "verdict"),
    [
        (GONE, RUNS, ["edgefed first boot: starting the agent"], "up"),
        (RUNS, GONE, ["edgefed first boot: building"], "waiting"),
        (RUNS, RUNS, [], "waiting"),  # an upgrade: the old agent runs while the new environment is built
        (GONE, GONE, [], "waiting"),
        (GONE, State("activating", "success", 0), [], "waiting"),
        (GONE, State("activating", "exit-code", 1), [], "waiting"),
        (GONE, State("activating", "exit-code", 3), [], "failed"),
        (GONE, State("failed", "exit-code", 0), [], "failed"),
        (State("activating", "exit-code", 1), GONE, [], "failed"),
        (RUNS, GONE, ["edgefed first boot: failed: what went wrong stands above"], "failed"),
    ],
)
def test_the_verdict(building: State, agent: State, journal: list[str], verdict: str) -> None:
    assert judge({FIRST_BOOT: building, AGENT: agent}, journal) == verdict


def test_units_that_systemd_says_nothing_about_are_waited_for() -> None:
    assert judge({}, []) == "waiting"
