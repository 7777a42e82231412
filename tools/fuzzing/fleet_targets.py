"""What a fleet is managed by, on the aggregator's disk: operators write some of it, and may do so by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edgefed.coordinator.rollout import OfferedBundle, Progress, Rollout, Step
from edgefed.coordinator.rollout_desk import read_progress, read_rollout
from edgefed.coordinator.roster import Roster, read_roster
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.sightings import Sightings, read_sightings
from edgefed.devices.profile import read_profile
from edgefed.devices.release_state import ReleaseState
from edgefed.errors import StoreError
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import DeviceState
from tools.fuzzing.engine import Target
from tools.fuzzing.mutations import Mutation, damaged, json_document, wrong_numbers

__all__ = ["fleet_targets"]

_JSON: tuple[Mutation, ...] = (damaged, wrong_numbers, json_document, json_document)
_SHA256 = "0123456789abcdef" * 4


def fleet_targets(scratch: Path) -> tuple[Target, ...]:
    """Returns the readers; `scratch` is a directory that they may write to."""
    run = RunDirectory(scratch)
    wish = _rollout()
    step = Step(bundle=_SHA256, state="fetching", since_unix_s=2.0, received_bytes=7)
    progress = msgspec.json.encode(Progress(rollout=wish.id, stage=1, steps={"one": step}))
    roster = Roster().with_duty(["one"], "paused", reason="too warm", now_unix_s=1.0)
    labelled = msgspec.json.encode(roster.with_labels(["one"], {"room": "lab"}))
    return (
        _target("roster", run.roster, lambda: read_roster(run.roster).held, labelled),
        _target("devices", run.sightings, lambda: read_sightings(run.path), _sightings(run)),
        _target("update wish", run.rollout, lambda: read_rollout(run.path), msgspec.json.encode(wish)),
        _target("update progress", run.rollout_progress, lambda: read_progress(run.path, wish), progress),
    )


def _target(name: str, path: Path, read: Callable[[], object], sample: bytes) -> Target:
    def write_and_read(payload: bytes) -> object:
        path.write_bytes(payload)
        return read()

    return Target(name, write_and_read, StoreError, (sample,), _JSON)


def _rollout() -> Rollout:
    bundle = OfferedBundle(
        sha256=_SHA256,
        size_bytes=1000,
        name="spring",
        number=7,
        version="1.0",
        architecture="aarch64",
        python="3.11",
        lock_sha256=_SHA256,
    )
    return Rollout(id="0a", bundles=(bundle,), stages=(10, 100), labels={"room": "lab"}, began_unix_s=1.0)


def _sightings(run: RunDirectory) -> bytes:
    """Returns what an aggregator writes."""
    sightings = Sightings(run)
    sightings.hear_state("one", DeviceState(status="ready", instance="i"))
    sightings.hear_plan("one", Plan(rank=2, held_rank=2, quantization="fp32"))
    release = ReleaseState(rollout="0a", bundle=_SHA256, name="spring", number=7, state="fetching", received_bytes=7)
    profile = read_profile(run.path, quantization="auto", max_rank=0)
    sightings.hear_profile("one", msgspec.structs.replace(profile, release=release))
    sightings.save(frozenset, at_once=True)
    return run.sightings.read_bytes()
