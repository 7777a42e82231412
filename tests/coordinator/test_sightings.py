"""What the aggregator writes down of the devices that it hears."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.sightings import Sightings, read_profile_of, read_sightings
from edgefed.devices.profile import read_profile
from edgefed.errors import StoreError
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import DeviceState

PLAN = Plan(rank=4, held_rank=2, quantization="fp32")


def nobody() -> frozenset[str]:
    return frozenset()


def test_what_was_heard_outlives_the_aggregator(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    sightings = Sightings(directory)
    sightings.hear_state("a", DeviceState(status="training", instance="i", round=3))
    sightings.hear_plan("a", PLAN)
    sightings.hear("b")
    profile = read_profile(tmp_path, quantization="fp32", max_rank=4)
    sightings.hear_profile("a", profile)
    sightings.save(lambda: frozenset({"a"}), at_once=True)

    later = Sightings(directory)
    assert later.is_at_work("a")
    assert not later.is_at_work("b")
    heard_s = read_sightings(tmp_path)["a"].seen_unix_s
    later.hear_state("a", DeviceState(status="lost", instance="i"))
    later.save(nobody, at_once=True)
    kept = read_sightings(tmp_path)
    assert kept["a"].state == DeviceState(status="lost", instance="i")
    assert (kept["a"].plan, kept["a"].busy) == (PLAN, False)
    assert kept["a"].seen_unix_s == heard_s, "that it is lost was not said by the device"
    assert kept["b"].seen_unix_s > 0
    assert read_profile_of(tmp_path, "a") == profile
    assert read_profile_of(tmp_path, "b") is None


def test_a_profile_that_is_kept_already_is_not_written_again(tmp_path: Path) -> None:
    """At the start of an aggregator, a thousand retained profiles would be a thousand synced writes."""
    directory = RunDirectory(tmp_path)
    profile = read_profile(tmp_path, quantization="fp32", max_rank=4)
    Sightings(directory).hear_profile("a", profile)
    written = directory.profile("a").stat().st_ino
    later = Sightings(directory)
    later.hear_profile("a", profile)
    assert directory.profile("a").stat().st_ino == written
    assert later.all()["a"].architecture == profile.architecture
    directory.profile("a").write_text("damaged")
    later.hear_profile("a", profile)
    assert read_profile_of(tmp_path, "a") == profile


def test_who_is_removed_is_forgotten(tmp_path: Path) -> None:
    sightings = Sightings(RunDirectory(tmp_path))
    sightings.hear("a")
    sightings.hear_profile("a", read_profile(tmp_path, quantization="fp32", max_rank=4))
    sightings.save(nobody, at_once=True)
    sightings.forget("a")
    sightings.forget("stranger")
    sightings.save(nobody, at_once=True)
    assert read_sightings(tmp_path) == {}
    assert read_profile_of(tmp_path, "a") is None


def test_nothing_is_written_where_nothing_has_changed(tmp_path: Path) -> None:
    sightings = Sightings(RunDirectory(tmp_path))
    sightings.save(nobody, at_once=True)
    assert not (tmp_path / "devices.json").exists()
    sightings.hear("a")
    sightings.save(nobody, at_once=True)
    before = (tmp_path / "devices.json").stat().st_ino
    sightings.save(nobody, at_once=True)
    assert (tmp_path / "devices.json").stat().st_ino == before
    sightings.save(lambda: frozenset({"a"}), at_once=True)
    assert read_sightings(tmp_path)["a"].busy


def test_damage_is_told_to_who_reads_and_overcome_by_who_writes(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    path.write_bytes(b"\xff{")
    with pytest.raises(StoreError, match=r"devices\.json is damaged: .* remove it"):
        read_sightings(tmp_path)
    sightings = Sightings(RunDirectory(tmp_path))
    sightings.hear("a")
    sightings.save(nobody, at_once=True)
    assert msgspec.json.decode(path.read_bytes())["version"] == 1


def test_a_disk_that_fails_is_named(tmp_path: Path) -> None:
    sightings = Sightings(RunDirectory(tmp_path))
    (tmp_path / "profiles").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot be written: .*/profiles/a\.json: .*; make room and start"):
        sightings.hear_profile("a", read_profile(tmp_path, quantization="fp32", max_rank=4))
