"""What the aggregator does about a release that an operator wishes to go out."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edgefed.coordinator import rollout_desk
from edgefed.coordinator.broadcast import Broadcast
from edgefed.coordinator.rollout import OfferedBundle, Rollout
from edgefed.coordinator.rollout_desk import RolloutDesk, read_progress, read_rollout, write_rollout
from edgefed.coordinator.roster import Roster
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.sightings import Sightings
from edgefed.devices.profile import read_profile
from edgefed.devices.release_state import ReleaseState
from edgefed.errors import StoreError
from edgefed.protocol.chunks import Ranges
from edgefed.protocol.messages.down import DownMessage, ReleaseOffered
from edgefed.protocol.messages.retained import DeviceState
from edgefed.protocol.topics import Topics
from edgefed.transport.in_memory import InMemoryBroker

CONTENT = b"a bundle"
BUNDLE = OfferedBundle(
    sha256="a" * 64,
    size_bytes=len(CONTENT),
    name="spring",
    number=7,
    version="1.0",
    architecture=platform.machine(),
    python=".".join(platform.python_version_tuple()[:2]),
    lock_sha256="b" * 64,
)
WISH = Rollout(id="wish", bundles=(BUNDLE,), stages=(100,), began_unix_s=0.0)


class Office:
    """A desk with what it needs, a clock that a test moves, and what it said."""

    def __init__(self, path: Path, *, signed: bool = True) -> None:
        self.path = path
        self.now_s = 1000.0
        self.roster = Roster()
        self.told: list[tuple[str, DownMessage]] = []
        self.directory = RunDirectory(path)
        self.sightings = Sightings(self.directory)
        self.broadcast = Broadcast(
            InMemoryBroker().connect("aggregator"), Topics("test"), chunk_bytes=1024, settle_s=0.0
        )
        for device in ("one", "two"):
            self.says(device)
        self.open(signed=signed)

    def open(self, *, signed: bool = True) -> None:
        """The aggregator is started."""
        self.desk = RolloutDesk(
            "run",
            self.directory,
            signed=signed,
            sightings=self.sightings,
            roster=lambda: self.roster,
            broadcast=self.broadcast,
            tell=lambda device, message: self.told.append((device, message)),
        )

    def says(self, device: str, release: ReleaseState | None = None, status: Any = "ready") -> None:
        self.sightings.hear_state(device, DeviceState(status=status, instance="i"))
        profile = read_profile(self.path, quantization="auto", max_rank=0)
        self.sightings.hear_profile(device, replace(profile, release=release))

    def looks(self, after_s: float = 2.0) -> list[str]:
        """Returns who is told of the release."""
        self.now_s += after_s
        self.told.clear()
        self.desk.look()
        assert all(isinstance(message, ReleaseOffered) for _, message in self.told)
        return sorted(device for device, _ in self.told)

    def can_send(self) -> bool:
        self.broadcast.want("one", {BUNDLE.sha256: Ranges([(0, 4)])})
        return self.broadcast.busy

    def lay_out(self) -> None:
        place = self.directory.release(BUNDLE.sha256)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(CONTENT)


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Office]:
    def make(**settings: Any) -> Office:
        made = Office(tmp_path, **settings)
        monkeypatch.setattr(rollout_desk.time, "monotonic", lambda: made.now_s)
        made.lay_out()
        return made

    return make


def outcome(state: Any) -> ReleaseState:
    return ReleaseState(rollout="wish", bundle=BUNDLE.sha256, name="spring", number=7, state=state)


def test_nothing_is_said_before_something_is_wished(office: Callable[..., Office]) -> None:
    here = office()
    assert here.looks() == []
    assert not here.can_send()


def test_it_is_said_again_until_it_is_answered_and_over(office: Callable[..., Office]) -> None:
    here = office()
    write_rollout(here.path, WISH)
    assert here.looks() == ["one", "two"]
    assert here.can_send()
    assert here.looks() == []
    assert here.looks(15.0) == ["one", "two"]
    here.says("one", outcome("delivered"))
    assert here.looks(15.0) == ["two"]
    here.says("one", outcome("installed"))
    here.says("two", outcome("installed"))
    assert here.looks(15.0) == []
    assert read_progress(here.path, WISH).outcome == "done"


def test_a_restart_goes_on(office: Callable[..., Office]) -> None:
    here = office()
    write_rollout(here.path, replace(WISH, stages=(50, 100)))
    (first,) = here.looks()
    here.says(first, outcome("delivered"))
    here.looks()
    here.open()
    assert here.looks() == [], "the first one has it, and the second one's turn has not come"
    here.says(first, outcome("installed"))
    assert here.looks() == [{"one": "two", "two": "one"}[first]]


def test_who_was_removed_is_not_offered_anything(office: Callable[..., Office]) -> None:
    here = office()
    here.roster = Roster().with_duty(["one"], "removed", reason="", now_unix_s=1.0)
    here.roster = here.roster.with_duty(["two"], "paused", reason="", now_unix_s=1.0)
    write_rollout(here.path, WISH)
    assert here.looks() == ["two"]


def test_who_is_removed_in_the_middle_of_a_stage_holds_nobody_up_and_is_no_failure(
    office: Callable[..., Office],
) -> None:
    here = office()
    write_rollout(here.path, replace(WISH, stages=(50, 100)))
    (first,) = here.looks()
    here.says(first, outcome("fetching"))
    assert here.looks() == []
    here.roster = Roster().with_duty([first], "removed", reason="", now_unix_s=1.0)
    here.sightings.forget(first)
    (second,) = here.looks()
    assert second != first
    here.says(second, outcome("installed"))
    here.looks()
    progress = read_progress(here.path, WISH)
    assert (progress.outcome, set(progress.steps)) == ("done", {second})


def test_the_time_without_an_aggregator_tries_no_patience(
    office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = office()
    write_rollout(here.path, WISH)
    here.looks()
    later_s = time.time() + WISH.patience_s + 1.0
    monkeypatch.setattr(rollout_desk.time, "time", lambda: later_s)
    here.open()
    assert here.looks() == ["one", "two"]
    assert read_progress(here.path, WISH).outcome == ""
    here.looks(after_s=WISH.patience_s + 1.0)
    assert read_progress(here.path, WISH).outcome == "failed"


def test_when_it_is_stopped_nothing_more_is_sent(office: Callable[..., Office]) -> None:
    here = office()
    write_rollout(here.path, WISH)
    here.looks()
    write_rollout(here.path, replace(WISH, stopped=True))
    assert here.looks(15.0) == []
    assert not here.can_send()
    assert read_progress(here.path, WISH).outcome == "stopped"


def test_a_fleet_without_signatures_offers_no_code(
    office: Callable[..., Office], caplog: pytest.LogCaptureFixture
) -> None:
    here = office(signed=False)
    write_rollout(here.path, WISH)
    assert here.looks() == []
    assert not here.can_send()
    assert "this fleet has no signatures" in caplog.text


def test_a_damaged_wish_changes_nothing_and_is_told_once(
    office: Callable[..., Office], caplog: pytest.LogCaptureFixture
) -> None:
    here = office()
    here.directory.rollout.write_text('{"id": 7}')
    assert here.looks() == []
    assert here.looks() == []
    assert len([one for one in caplog.records if one.levelno == logging.ERROR]) == 1
    with pytest.raises(StoreError, match=r"update\.json is damaged: .* begin the update again"):
        read_rollout(here.path)


def test_a_bundle_that_is_gone_is_told(office: Callable[..., Office], caplog: pytest.LogCaptureFixture) -> None:
    here = office()
    here.directory.release(BUNDLE.sha256).unlink()
    write_rollout(here.path, WISH)
    here.looks()
    assert not here.can_send()
    assert "is gone: nothing can be sent of it" in caplog.text


def test_a_clock_on_the_wall_that_is_set_makes_nobody_silent(
    office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a battery for its clock starts years ago, until the network tells it the time."""
    made = office()
    write_rollout(made.path, WISH)
    made.open()
    assert made.looks() == ["one", "two"]
    wall = time.time
    monkeypatch.setattr(rollout_desk.time, "time", lambda: wall() + 86400.0)
    made.looks()
    assert {step.state for step in read_progress(made.path, WISH).steps.values()} == {"offered"}
    made.looks(after_s=WISH.patience_s + 1)
    assert {step.state for step in read_progress(made.path, WISH).steps.values()} == {"silent"}
