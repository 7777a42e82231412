"""What becomes of a start, from what systemd and the journal say."""

from __future__ import annotations

import pytest

from edgefed.flashing.ssh_start import AGENT, FIRST_BOOT, State, judge

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
