"""A fleet's devices, gathered from what is on disk: certificates, the operator's roster, and what was last heard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgefed.cli.profile_view import describe_board
from edgefed.coordinator.roster import Entry, Roster, read_roster
from edgefed.coordinator.sightings import Sighting, read_profile_of, read_sightings
from edgefed.devices.profile import DeviceProfile
from edgefed.errors import ConfigError

if TYPE_CHECKING:
    from edgefed.security.fleet_directory import FleetDirectory
    from edgefed.security.issued import Issued

__all__ = ["KnownDevice", "clock", "known_devices", "one_of", "run_directory"]


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """One device.

    Attributes:
        device: its id.
        entry: what the operator said of it.
        sighting: what the aggregator last heard of it; None where it never did.
        profile: what it says it is.
        certificate: its newest, where a fleet's directory was looked at.
    """

    device: str
    entry: Entry
    sighting: Sighting | None
    profile: DeviceProfile | None
    certificate: Issued | None

    @property
    def standing(self) -> str:
        """What is wanted of it, or has come of that: a device that was to run dry is `drained` when it has."""
        if self.entry.duty != "draining":
            return self.entry.duty
        return "draining" if self.sighting is not None and self.sighting.busy else "drained"

    @property
    def status(self) -> str:
        """What it last said it is doing; "" where it never did."""
        return "" if self.sighting is None or self.sighting.state is None else self.sighting.state.status

    @property
    def plan(self) -> str:
        """What it last joined a round with, in a few words."""
        plan = None if self.sighting is None else self.sighting.plan
        return "" if plan is None else f"rank {plan.rank} over {plan.quantization}"

    @property
    def seen(self) -> str:
        """When it was last heard."""
        return "" if self.sighting is None or not self.sighting.seen_unix_s else clock(self.sighting.seen_unix_s)

    @property
    def labels(self) -> str:
        """Its labels, as they are written on a command line."""
        return " ".join(f"{key}={value}" for key, value in self.entry.labels.items())

    @property
    def hardware(self) -> str:
        """Its board, in a few words."""
        return "" if self.profile is None else describe_board(self.profile)

    def as_json(self) -> dict[str, Any]:
        """Returns all of it."""
        sighting = self.sighting
        return {
            "device": self.device,
            "standing": self.standing,
            "reason": self.entry.reason,
            "since_unix_s": self.entry.since_unix_s or None,
            "labels": self.entry.labels,
            "busy": sighting is not None and sighting.busy,
            "seen_unix_s": (sighting.seen_unix_s or None) if sighting else None,
            "state": msgspec.to_builtins(sighting.state) if sighting else None,
            "plan": msgspec.to_builtins(sighting.plan) if sighting else None,
            "profile": msgspec.to_builtins(self.profile),
        }


def run_directory(run: Path | None, config: Path | None) -> Path:
    """Returns the run's directory, named as such or by a federation's file; `federation.toml` where nothing is named.

    Raises:
        ConfigError: both are named, the file is wrong, or there is no such directory.
    """
    from edgefed.config import read_federation

    if run is not None and config is not None:
        raise ConfigError("--run and --config both name the run: give one of them")
    directory = run or Path(read_federation(config or Path("federation.toml")).directory)
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no run's directory: start `edgefed aggregator` once, or name another")
    return directory


def known_devices(run: Path, fleet: FleetDirectory | None = None) -> dict[str, KnownDevice]:
    """Returns every device that a run's aggregator has heard, the roster names, or the fleet has a certificate for.

    Args:
        run: the run's directory.
        fleet: the fleet's, if it is to be looked at too.

    Raises:
        StoreError: a document in the run's directory is damaged.
    """
    roster, sightings = read_roster(run / "roster.json"), read_sightings(run)
    certificates: dict[str, Issued] = {}
    if fleet is not None:
        certificates = {one.identity.name: one for one in fleet.issued() if one.identity.role == "device"}
    return {
        device: _known(device, run, roster, sightings, certificates)
        for device in sorted({*roster.devices, *sightings, *certificates})
    }


def _known(
    device: str,
    run: Path,
    roster: Roster,
    sightings: Mapping[str, Sighting],
    certificates: Mapping[str, Issued],
) -> KnownDevice:
    return KnownDevice(
        device, roster.entry(device), sightings.get(device), read_profile_of(run, device), certificates.get(device)
    )


def one_of(known: Mapping[str, KnownDevice], device: str) -> KnownDevice:
    """Returns a device by its id.

    Raises:
        ConfigError: nobody knows it; the message has ids that look alike.
    """
    if device in known:
        return known[device]
    alike = get_close_matches(device, known, n=3)
    hint = (
        f"did you mean {' or '.join(alike)}?" if alike else f"{len(known)} are known; `edgefed fleet list` names them"
    )
    raise ConfigError(f"no device {device!r} has been heard of in this run: {hint}")


def clock(unix_s: float) -> str:
    """Returns a time as people and programs read it."""
    return f"{datetime.fromtimestamp(unix_s, timezone.utc):%Y-%m-%d %H:%M:%S}Z"
