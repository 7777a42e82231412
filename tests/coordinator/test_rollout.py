"""Stages of a rollout: who is offered a release when, and when that ends. Pure."""

from __future__ import annotations

from dataclasses import replace as changed
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgefed.coordinator.rollout import Candidate, OfferedBundle, Progress, Rollout, Step, advance, fitting, in_order
from edgefed.devices.release_state import ReleaseState

X86 = OfferedBundle(
    sha256="a" * 64,
    size_bytes=1000,
    name="spring",
    number=7,
    version="1.0",
    architecture="x86_64",
    python="3.11",
    lock_sha256="b" * 64,
)
ARM = replace(X86, sha256="c" * 64, architecture="aarch64")
WISH = Rollout(id="wish", bundles=(X86, ARM), stages=(10, 50, 100), began_unix_s=0.0, patience_s=100.0)
DEVICES = tuple(f"board-{number}" for number in range(10))
ORDER = sorted(DEVICES, key=in_order)


def candidate(**settings: Any) -> Candidate:
    return Candidate(**{"online": True, "architecture": "x86_64", "python": "3.11.9", "labels": {}, **settings})


class Fleet:
    """Devices that do as a test says."""

    def __init__(self, wish: Rollout = WISH, devices: tuple[str, ...] = DEVICES) -> None:
        self.wish = wish
        self.progress = Progress()
        self.candidates = {device: candidate() for device in devices}

    def looks(self, now_s: float = 0.0) -> set[str]:
        """Returns who was offered it newly."""
        before = set(self.progress.steps)
        self.progress = advance(self.wish, self.progress, self.candidates, now_s)
        assert set(self.progress.steps) >= before
        return set(self.progress.steps) - before

    def say(self, state: Any, *devices: str, rollout: str = "wish", reason: str = "", received_bytes: int = 0) -> None:
        for device in devices:
            report = ReleaseState(
                rollout=rollout,
                bundle=X86.sha256,
                name="spring",
                number=7,
                state=state,
                reason=reason,
                received_bytes=received_bytes,
            )
            self.candidates[device] = changed(self.candidates[device], report=report)


def test_a_stage_begins_when_the_one_before_is_well() -> None:
    fleet = Fleet()
    assert fleet.looks() == {ORDER[0]}
    assert fleet.looks(1.0) == set()
    fleet.say("fetching", ORDER[0])
    assert fleet.looks(2.0) == set()
    fleet.say("installed", ORDER[0])
    assert fleet.looks(3.0) == set(ORDER[1:5])
    fleet.say("installed", *ORDER[1:4])
    assert fleet.looks(4.0) == set()
    fleet.say("installed", ORDER[4])
    assert fleet.looks(5.0) == set(ORDER[5:])
    assert fleet.progress.outcome == ""
    fleet.say("installed", *ORDER)
    assert fleet.looks(6.0) == set()
    assert fleet.progress.outcome == "done"


def test_more_failures_than_allowed_end_it() -> None:
    fleet = Fleet(replace(WISH, max_failures=1, stages=(50, 100)))
    fleet.looks()
    fleet.say("rolled-back", ORDER[0], reason="it did not come up")
    fleet.say("installed", *ORDER[1:4])
    assert fleet.looks(1.0) == set()
    assert fleet.progress.outcome == ""
    fleet.say("refused", ORDER[4], reason="no room")
    assert fleet.looks(2.0) == set()
    assert fleet.progress.outcome == "failed"
    assert fleet.progress.reason == (
        "2 failed, and at most 1 may: "
        + ", ".join(f"{one} ({fleet.progress.steps[one].state})" for one in sorted((ORDER[0], ORDER[4])))
    )
    assert fleet.progress.steps[ORDER[0]].reason == "it did not come up"


def test_within_what_is_allowed_it_goes_on() -> None:
    fleet = Fleet(replace(WISH, max_failures=1, stages=(10, 100)))
    fleet.looks()
    fleet.say("rolled-back", ORDER[0])
    assert fleet.looks(1.0) == set(ORDER[1:])


def test_who_has_nothing_new_to_say_has_failed() -> None:
    fleet = Fleet()
    fleet.looks(0.0)
    fleet.say("fetching", ORDER[0], received_bytes=500)
    fleet.looks(90.0)
    fleet.looks(190.0)
    assert fleet.progress.steps[ORDER[0]].state == "fetching"
    fleet.say("fetching", ORDER[0], received_bytes=900)
    fleet.looks(191.0)
    fleet.looks(290.0)
    assert fleet.progress.outcome == ""
    fleet.looks(292.0)
    step = fleet.progress.steps[ORDER[0]]
    assert (step.state, step.reason) == ("silent", "nothing new since it was fetching")
    fleet.looks(293.0)
    assert fleet.progress.outcome == "failed"
    fleet.say("installed", ORDER[0])
    assert fleet.looks(294.0) == set(ORDER[1:5]), "it was slow, and is well"


def test_who_is_away_is_not_waited_for_and_gets_it_when_back() -> None:
    fleet = Fleet(replace(WISH, stages=(100,)))
    fleet.candidates[ORDER[3]] = candidate(online=False)
    assert fleet.looks() == set(ORDER) - {ORDER[3]}
    fleet.say("installed", *(one for one in ORDER if one != ORDER[3]))
    fleet.looks(1.0)
    assert fleet.progress.outcome == "done"
    fleet.candidates[ORDER[3]] = candidate()
    assert fleet.looks(2.0) == {ORDER[3]}
    assert fleet.progress.outcome == ""


def test_nobody_there_is_not_done() -> None:
    fleet = Fleet(devices=())
    assert fleet.looks() == set()
    assert (fleet.progress.stage, fleet.progress.outcome) == (0, "")


def test_the_operator_ends_it() -> None:
    fleet = Fleet()
    fleet.looks()
    fleet.wish = replace(WISH, stopped=True)
    fleet.say("installed", ORDER[0])
    assert fleet.looks(1.0) == set()
    assert fleet.progress.outcome == "stopped"
    assert fleet.progress.steps[ORDER[0]].state == "installed", "what was begun is followed"


def test_another_wish_begins_anew() -> None:
    fleet = Fleet()
    fleet.looks()
    fleet.say("rolled-back", ORDER[0])
    fleet.looks(1.0)
    assert fleet.progress.outcome == "failed"
    fleet.wish = replace(WISH, id="again")
    fleet.progress = advance(fleet.wish, fleet.progress, fleet.candidates, 2.0)
    assert fleet.progress == Progress(
        rollout="again", steps={ORDER[0]: Step(bundle=X86.sha256, state="offered", since_unix_s=2.0)}
    ), "what it said of the wish before counts for nothing"


@pytest.mark.parametrize(
    ("settings", "bundle"),
    [
        ({}, X86),
        ({"architecture": "aarch64"}, ARM),
        ({"python": "3.12.1"}, None),
        ({"architecture": "", "python": ""}, None),
        ({"labels": {"room": "hall"}}, None),
    ],
)
def test_which_bundle_fits(settings: dict[str, Any], bundle: OfferedBundle | None) -> None:
    labelled = {"labels": {"room": "lab", "power": "mains"}, **settings}
    assert fitting(replace(WISH, labels={"room": "lab"}), candidate(**labelled)) == bundle


STATES = st.sampled_from(["fetching", "delivered", "installed", "rolled-back", "refused"])


@given(
    stages=st.sets(st.integers(1, 100), min_size=1, max_size=4),
    max_failures=st.integers(0, 3),
    story=st.lists(st.tuples(st.integers(0, 9), STATES, st.booleans(), st.floats(0, 60)), max_size=60),
)
def test_what_holds_in_every_story(
    stages: set[int], max_failures: int, story: list[tuple[int, Any, bool, float]]
) -> None:
    """Nobody new after the end; never more at risk than the stage allows; the same look twice changes nothing."""
    fleet = Fleet(replace(WISH, stages=tuple(sorted(stages)), max_failures=max_failures))
    now_s = 0.0
    for number, state, online, passed_s in story:
        now_s += passed_s
        device = DEVICES[number]
        fleet.candidates[device] = changed(fleet.candidates[device], online=online)
        if device in fleet.progress.steps:
            fleet.say(state, device)
        before = fleet.progress
        new = fleet.looks(now_s)
        assert fleet.progress.stage >= before.stage or before.rollout == ""
        assert all(fleet.candidates[one].online for one in new)
        if fleet.progress.failures > max_failures:
            assert fleet.progress.outcome == "failed"
            assert not new
        under_way = [step for step in fleet.progress.steps.values() if not step.over]
        if new and under_way:
            percent = fleet.wish.stages[fleet.progress.stage]
            assert len(fleet.progress.steps) <= -(-10 * percent // 100)
        assert advance(fleet.wish, fleet.progress, fleet.candidates, now_s) == fleet.progress
