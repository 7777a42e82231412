"""`edgefed fleet update`: what is wished, made, kept and shown; no aggregator is running."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from edgefed.cli import fleet_update_view
from edgefed.cli.fleet_update_view import follow
from edgefed.coordinator.database import lock_run
from edgefed.coordinator.rollout import Progress, Rollout, Step
from edgefed.coordinator.rollout_desk import read_rollout, write_rollout
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.sightings import Sightings
from edgefed.devices.profile import read_profile
from edgefed.errors import UpdateError
from edgefed.files import replace_file
from edgefed.protocol.messages.retained import DeviceState
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR
from edgefed.security.signatures import read_verifier
from edgefed.updates.bundle import open_bundle
from tests.flashing.small_boards import MACHINE, make_wheel

Run = Callable[..., Any]
PYTHON = f"3.{sys.version_info.minor}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The aggregator's directory: a signed fleet, a run in which two devices were heard, and wheels of a release."""
    now = datetime.now(timezone.utc)
    fleet = FleetDirectory.create(tmp_path / "kitchen", "kitchen", hosts=["b"], lifetimes=Lifetimes(), now=now)
    files = fleet.place(AGGREGATOR)
    (tmp_path / "federation.toml").write_text(
        f'fleet = "kitchen"\ndirectory = "run"\n[model]\nname = "m"\n[broker]\nsigned = true\n'
        f'tls_ca = "{files}/ca.pem"\ntls_certificate = "{files}/certificate.pem"\ntls_key = "{files}/key.pem"\n'
    )
    sightings = Sightings(RunDirectory(tmp_path / "run"))
    for device in ("one", "two"):
        sightings.hear_state(device, DeviceState(status="ready", instance="i"))
        sightings.hear_profile(device, read_profile(tmp_path, quantization="auto", max_rank=0))
    sightings.save(frozenset, at_once=True)
    wheels(tmp_path, "2.0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wheels(place: Path, version: str) -> Path:
    directory = place / f"wheels-{version}"
    make_wheel(directory, "edgefed", version)
    make_wheel(directory, "pip", "24.0")
    return directory


def wished(place: Path) -> Rollout:
    rollout = read_rollout(place / "run")
    assert rollout is not None
    return rollout


def came_to(place: Path, progress: Progress) -> None:
    """Does as an aggregator."""
    replace_file(place / "run" / "update-progress.json", [msgspec.json.encode(progress)])


def kept(place: Path) -> list[str]:
    return [path.name for path in (place / "run" / "releases").iterdir()]


def test_wheels_become_a_signed_bundle_for_the_machines_that_are_there(edgefed: Run, place: Path) -> None:
    assert edgefed("fleet", "label", "one", "room=lab", "--run", "run").code == 0
    done = edgefed(
        "fleet", "update", "wheels-2.0", "--no-wait", "--percent", "50,100", "--label", "room=lab", text="y\n"
    )
    assert done.code == 0, done.err
    assert "release 2.0 (edgefed 2.0) for 1 of 2 devices, in stages of 50 %, 100 %. Go on?" in done.err
    assert "stage 1 of 2 (50 %) · nobody was offered it yet" in done.out
    wish = wished(place)
    assert (wish.stages, wish.labels, wish.max_failures, wish.patience_s) == ((50, 100), {"room": "lab"}, 0, 1800.0)
    (bundle,) = wish.bundles
    assert (bundle.architecture, bundle.python, bundle.version) == (MACHINE, PYTHON, "2.0")
    path = place / "run" / "releases" / f"{bundle.sha256}.bundle"
    verifier = read_verifier(place / "kitchen" / "aggregator" / "ca.pem")
    opened = open_bundle(path, verifier, fleet="kitchen", now_unix_s=datetime.now().timestamp())
    assert opened.release.number == bundle.number
    assert kept(place) == [path.name]


def test_who_says_no_begins_nothing(edgefed: Run, place: Path) -> None:
    assert edgefed("fleet", "update", "wheels-2.0", text="n\n").code == 1
    assert read_rollout(place / "run") is None


def test_the_same_again_goes_on_and_another_has_to_wait(edgefed: Run, place: Path) -> None:
    assert edgefed("fleet", "update", "wheels-2.0", "--no-wait", "--yes").code == 0
    first = wished(place)
    assert edgefed("fleet", "update", "wheels-2.0", "--no-wait", "--yes").code == 0
    assert wished(place) == first
    assert kept(place) == [f"{first.bundles[0].sha256}.bundle"]
    other = wheels(place, "3.0")
    done = edgefed("fleet", "update", other, "--no-wait", "--yes")
    assert (done.code, "release 2.0 is on its way still" in done.err) == (18, True)
    assert edgefed("fleet", "update", "--stop").code == 0
    assert wished(place).stopped
    assert edgefed("fleet", "update", other, "--no-wait", "--yes").code == 0
    assert (wished(place).bundles[0].version, wished(place).stopped) == ("3.0", False)
    assert kept(place) == [f"{wished(place).bundles[0].sha256}.bundle"], "the one before is not kept"


def test_the_next_release_comes_after_one_that_was_made_while_the_clock_was_ahead(edgefed: Run, place: Path) -> None:
    edgefed("fleet", "update", "wheels-2.0", "--no-wait", "--yes")
    first, ahead = wished(place), 4_000_000_000
    write_rollout(place / "run", replace(first, bundles=(replace(first.bundles[0], number=ahead),), stopped=True))
    assert edgefed("fleet", "update", wheels(place, "3.0"), "--no-wait", "--yes").code == 0
    assert wished(place).bundles[0].number == ahead + 1


def test_what_has_failed_can_be_tried_again(edgefed: Run, place: Path) -> None:
    edgefed("fleet", "update", "wheels-2.0", "--no-wait", "--yes")
    first = wished(place)
    came_to(place, Progress(rollout=first.id, outcome="failed", reason="1 failed, and none may: one (silent)"))
    done = edgefed("fleet", "update")
    assert (done.code, "1 failed, and none may" in done.err) == (18, True)
    assert edgefed("fleet", "update", "wheels-2.0", "--no-wait", "--yes").code == 0
    assert wished(place).id != first.id


def test_progress_is_told_until_it_is_done(edgefed: Run, place: Path) -> None:
    edgefed("fleet", "update", "wheels-2.0", "--no-wait", "--yes")
    wish = wished(place)
    sha256 = wish.bundles[0].sha256
    steps = {
        "one": Step(bundle=sha256, state="installed", since_unix_s=1.0),
        "two": Step(bundle=sha256, state="fetching", since_unix_s=1.0, received_bytes=500),
    }
    came_to(place, Progress(rollout=wish.id, stage=2, steps=steps))
    shown = edgefed("fleet", "update", "--no-wait").out
    assert "stage 3 of 3 (100 %) · 1 installed · 1 fetching" in shown
    assert "two\tfetching\t500 B of " in shown
    steps["two"] = replace(steps["two"], state="installed")
    came_to(place, Progress(rollout=wish.id, stage=2, steps=steps, outcome="done"))
    done = edgefed("fleet", "update")
    assert (done.code, done.out.count("installed")) == (0, 2)
    assert "two: installed" in done.err
    document = json.loads(edgefed("fleet", "update", "--json").out)
    assert document["progress"]["outcome"] == "done"
    assert document["update"]["id"] == wish.id


def test_a_bundle_is_made_for_machines_that_are_elsewhere(edgefed: Run, place: Path) -> None:
    out = place / "spring.bundle"
    done = edgefed(
        "fleet", "update", "wheels-2.0", "-o", out, "--architecture", "aarch64", "--python", "3.10", "--name", "spring"
    )
    assert done.out == f"wrote {out}: release spring for aarch64, Python 3.10\n"
    assert read_rollout(place / "run") is None
    both = edgefed("fleet", "update", out, "wheels-2.0", "--no-wait", "--yes")
    assert both.code == 0, both.err
    assert {(one.architecture, one.python) for one in wished(place).bundles} == {("aarch64", "3.10"), (MACHINE, PYTHON)}
    twice = edgefed("fleet", "update", out, out, "--no-wait", "--yes")
    assert (twice.code, "another bundle is for aarch64" in twice.err) == (18, True)


def test_a_fleet_without_signatures_gets_no_code(edgefed: Run, place: Path) -> None:
    config = place / "federation.toml"
    config.write_text(config.read_text().replace("signed = true\n", ""))
    done = edgefed("fleet", "update", "wheels-2.0", "--yes")
    assert (done.code, "code is never installed unsigned" in done.err) == (18, True)
    assert not (place / "run" / "releases").exists()


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_damaged_bundle_is_named_and_not_kept(edgefed: Run, place: Path, cut: int) -> None:
    out = place / "spring.bundle"
    assert edgefed("fleet", "update", "wheels-2.0", "-o", out).code == 0
    os.truncate(out, cut % out.stat().st_size)
    done = edgefed("fleet", "update", out, "--yes")
    assert (done.code, str(out) in done.err) == (18, True)
    assert not kept(place)


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("--percent", "50,10"), 3, "--percent is '50,10'; it must be growing whole numbers"),
        (("--percent", "0,100"), 3, "it must be growing whole numbers from 1 to 100"),
        (("--percent", "many"), 3, "it must be growing whole numbers"),
        (("--patience", "soon"), 3, "--patience is 'soon'"),
        (("--label", "lab"), 3, "'lab' is no label"),
        (("--architecture", "riscv64"), 3, "Say --architecture and --python (none are known)"),
        (("--architecture", "riscv64", "--python", "two"), 3, "--python is 'two'"),
        (("--name", "../spring"), 18, "says what is not allowed"),
    ],
)
def test_what_cannot_be(edgefed: Run, place: Path, words: tuple[str, ...], code: int, problem: str) -> None:
    done = edgefed("fleet", "update", "wheels-2.0", "--yes", *words)
    assert done.code == code
    assert problem in done.err
    assert read_rollout(place / "run") is None


def test_what_is_not_there(edgefed: Run, place: Path) -> None:
    assert "none.bundle: cannot be used: No such file" in edgefed("fleet", "update", "none.bundle", "--yes").err
    assert "no update has been begun" in edgefed("fleet", "update").err
    (place / "empty").mkdir()
    assert edgefed("fleet", "update", "empty", "--yes").code == 15
    assert "name one directory of wheels" in edgefed("fleet", "update", "-o", "x.bundle").err


def test_who_watches_is_told_that_another_update_came(edgefed: Run, place: Path) -> None:
    edgefed("fleet", "update", "wheels-2.0", "--no-wait", "--yes")
    before = wished(place)
    write_rollout(place / "run", replace(before, id="another"))
    with pytest.raises(UpdateError, match="another update has taken the place"):
        follow(place / "run", before, as_json=True)


@pytest.mark.parametrize("at_work", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_who_watches_is_told_why_nothing_happens(
    edgefed: Run,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at_work: bool,
    begun: bool,
) -> None:
    edgefed("fleet", "update", "wheels-2.0", "--no-wait", "--yes")
    rollout = wished(place)
    step = Step(bundle=rollout.bundles[0].sha256, state="fetching", since_unix_s=1.0)
    came_to(place, Progress(rollout=rollout.id, steps={"one": step} if begun else {}))
    lock = lock_run(place / "run") if at_work else None

    looks = iter(range(9))

    def ends_soon(_: float) -> None:
        if next(looks) == 2:
            came_to(place, Progress(rollout=rollout.id, outcome="done"))

    monkeypatch.setattr(fleet_update_view, "_HINT_AFTER_S", -1.0)
    monkeypatch.setattr(fleet_update_view.time, "sleep", ends_soon)
    capsys.readouterr()
    follow(place / "run", rollout, as_json=True)
    said = capsys.readouterr().err
    assert said.count("no aggregator is at work") == (not at_work)
    assert said.count("nobody was offered it yet: is a device there?") == (at_work and not begun)
    if lock is not None:
        os.close(lock)


def test_without_an_aggregator_it_is_said_at_once_that_nothing_will_happen(edgefed: Run, place: Path) -> None:
    nobody = f"no aggregator is at work in {place / 'run'}"
    begun = edgefed("fleet", "update", "wheels-2.0", "--no-wait", "--yes")
    assert f"{nobody}: the update goes on when one is started again" in begun.err
    lock = lock_run(place / "run")
    assert edgefed("fleet", "update", "--no-wait").err == ""
    stopping = edgefed("fleet", "update", "--stop").err
    assert stopping == "the update is being stopped: the aggregator offers it to nobody else\n"
    os.close(lock)
    stopped = edgefed("fleet", "update", "--stop")
    assert stopped.err == f"the update is stopped: {nobody}, and the next one offers it to nobody else\n"
    came_to(place, Progress(rollout=wished(place).id, outcome="stopped"))
    again = edgefed("fleet", "update", "--no-wait")
    assert (again.err, "· stopped" in again.out) == ("", True)


def test_who_watches_without_an_aggregator_is_told_at_once(
    edgefed: Run, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edgefed("fleet", "update", "wheels-2.0", "--no-wait", "--yes")
    rollout = wished(place)
    monkeypatch.setattr(fleet_update_view, "_HINT_AFTER_S", float("inf"))
    monkeypatch.setattr(
        fleet_update_view.time, "sleep", lambda _: came_to(place, Progress(rollout=rollout.id, outcome="done"))
    )
    capsys.readouterr()
    follow(place / "run", rollout, as_json=True)
    assert "no aggregator is at work" in capsys.readouterr().err
