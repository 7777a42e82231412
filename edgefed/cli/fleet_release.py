"""The bundles of a release: made of wheels with the aggregator's key, or checked, and laid where it offers them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.rollout import Candidate, OfferedBundle, Rollout
from edgefed.coordinator.rollout_desk import candidate_of, read_rollout
from edgefed.coordinator.roster import read_roster
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.sightings import read_sightings
from edgefed.errors import ConfigError, UpdateError
from edgefed.files import hash_file, remove_leftovers, sync_directory, temporary_beside
from edgefed.flashing.board import Board
from edgefed.flashing.release import bundle_wheelhouse
from edgefed.security.signatures import read_signer, read_verifier
from edgefed.updates.bundle import Bundle, open_bundle

__all__ = ["bundle_wheels", "candidates", "drop_others", "laid_out"]


def candidates(run: Path) -> dict[str, Candidate]:
    """Returns every device of a run that was not removed, as far as an update is concerned."""
    roster = read_roster(run / "roster.json")
    return {
        device: candidate_of(sighting, roster.entry(device).labels)
        for device, sighting in read_sightings(run).items()
        if roster.entry(device).duty != "removed"
    }


def laid_out(
    options: FederationOptions,
    run: Path,
    release: list[Path],
    wheels_for: tuple[str, str, str],
    labels: Mapping[str, str],
) -> tuple[OfferedBundle, ...]:
    """Returns the bundles, which lie in the run's directory now.

    Args:
        options: of the aggregator, whose key and fleet these are.
        run: the run's directory.
        release: bundles, or a directory of wheels.
        wheels_for: architecture, Python and name of the release, for wheels; empty where it is to be found out.
        labels: of the devices that it is for.

    Raises:
        UpdateError: one is not signed by this fleet's aggregator or is damaged, or two are for the same machines.
        FlashError: wheels do not fit, or are not all there.
        ConfigError: the machines are not said and cannot be found out.
    """
    directory = RunDirectory(run).release("x").parent
    directory.mkdir(exist_ok=True)
    remove_leftovers(directory)
    found: dict[tuple[str, str], OfferedBundle] = {}
    for path in release:
        one = _from_wheels(options, run, path, wheels_for, labels) if path.is_dir() else _from_file(options, run, path)
        if found.setdefault((one.architecture, one.python), one) is not one:
            raise UpdateError(f"{path}: another bundle is for {one.architecture} with Python {one.python} too")
    return tuple(found.values())


def drop_others(run: Path, rollout: Rollout) -> None:
    """Removes the bundles that nobody is offered any more."""
    kept = {RunDirectory(run).release(bundle.sha256) for bundle in rollout.bundles}
    for path in RunDirectory(run).release("x").parent.iterdir():
        if path not in kept:
            path.unlink()


def bundle_wheels(
    options: FederationOptions,
    run: Path,
    wheels: Path,
    output: Path,
    wheels_for: tuple[str, str, str],
    labels: Mapping[str, str],
) -> Bundle:
    """Writes the bundle of a directory of wheels, signed with the aggregator's key. Raises as `laid_out`."""
    now_unix_s = time.time()
    return bundle_wheelhouse(
        output,
        wheels,
        _board(run, wheels_for, labels),
        fleet=options.fleet,
        number=max(int(now_unix_s), _latest_number(run) + 1),
        signer=read_signer(Path(options.broker.tls_certificate), Path(options.broker.tls_key)),
        at_unix_s=now_unix_s,
        name=wheels_for[2],
    )


def _latest_number(run: Path) -> int:
    """Returns the number of the release before, which devices remember even where this clock was ahead then."""
    before = read_rollout(run)
    return 0 if before is None else max((bundle.number for bundle in before.bundles), default=0)


def _from_wheels(
    options: FederationOptions, run: Path, wheels: Path, wheels_for: tuple[str, str, str], labels: Mapping[str, str]
) -> OfferedBundle:
    made = temporary_beside(RunDirectory(run).release("new"))
    try:
        bundle = bundle_wheels(options, run, wheels, made, wheels_for, labels)
        return _kept(run, bundle)
    finally:
        made.unlink(missing_ok=True)


def _from_file(options: FederationOptions, run: Path, path: Path) -> OfferedBundle:
    verifier = read_verifier(Path(options.broker.tls_ca))
    copy = temporary_beside(RunDirectory(run).release("new"))
    try:
        try:
            shutil.copyfile(path, copy)
        except OSError as error:
            raise ConfigError(f"{error.filename or path}: cannot be used: {error.strerror}") from error
        try:
            bundle = open_bundle(copy, verifier, fleet=options.fleet, now_unix_s=time.time())
        except UpdateError as error:  # it speaks of the copy
            raise type(error)(str(error).replace(str(copy), str(path))) from None
        return _kept(run, bundle)
    finally:
        copy.unlink(missing_ok=True)


def _kept(run: Path, bundle: Bundle) -> OfferedBundle:
    """Gives a bundle its name, durably."""
    sha256, release = hash_file(bundle.path), bundle.release
    offered = OfferedBundle(
        sha256=sha256,
        size_bytes=bundle.path.stat().st_size,
        name=release.name,
        number=release.number,
        version=release.version,
        architecture=release.architecture,
        python=release.python,
        lock_sha256=release.lock.sha256,
    )
    place = RunDirectory(run).release(sha256)
    with bundle.path.open("rb") as file:
        os.fsync(file.fileno())
    bundle.path.replace(place)
    sync_directory(place.parent)
    return offered


def _board(run: Path, wheels_for: tuple[str, str, str], labels: Mapping[str, str]) -> Board:
    architecture, python, _ = wheels_for
    if not architecture or not python:
        kinds = {
            (one.architecture, ".".join(one.python.split(".")[:2]))
            for one in candidates(run).values()
            if one.architecture and labels.items() <= one.labels.items()
        }
        kinds = {kind for kind in kinds if architecture in ("", kind[0]) and python in ("", kind[1])}
        if len(kinds) != 1:
            listed = ", ".join(f"{name} with Python {version}" for name, version in sorted(kinds)) or "none are known"
            raise ConfigError(f"which machines are the wheels for? Say --architecture and --python ({listed})")
        ((architecture, python),) = kinds
    major, _, minor = python.partition(".")
    if (major, minor.isdigit()) != ("3", True):
        raise ConfigError(f"--python is {python!r}; it must be a version such as 3.11")
    return Board(architecture=architecture, python=(3, int(minor)))
