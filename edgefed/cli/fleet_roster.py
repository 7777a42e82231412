"""`edgefed fleet label | pause | resume | drain | remove`: what an operator wants of devices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefed.cli.fleet_list import CONFIG_OPTION, JSON_OPTION, LABEL_OPTION, RUN_OPTION
from edgefed.cli.option_groups import with_option_groups

if TYPE_CHECKING:
    from edgefed.protocol.messages.down import Duty

__all__ = ["drain", "label", "pause", "remove", "resume"]

_DEVICES: Any = typer.Argument(help="Device ids.", show_default=False)
_REASON: Any = typer.Option("--reason", help="Why; the devices log and show it.")
_FLEET: Any = typer.Option("--fleet", "-f", help="The fleet's directory.", file_okay=False)
_YES: Any = typer.Option("--yes", "-y", help="Do not ask.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Which devices of which run, as it stands on the command line; a command takes it by `with_option_groups`."""

    devices: Annotated[list[str] | None, _DEVICES] = None
    labels: Annotated[list[str] | None, LABEL_OPTION] = None
    run: Annotated[Path | None, RUN_OPTION] = None
    config: Annotated[Path | None, CONFIG_OPTION] = None
    yes: Annotated[bool, _YES] = False
    json: Annotated[bool, JSON_OPTION] = False


def label(
    device: Annotated[str, typer.Argument(help="A device id.")],
    labels: Annotated[list[str], typer.Argument(help="KEY=VALUE to set a label, KEY= to take it away.")],
    run: Annotated[Path | None, RUN_OPTION] = None,
    config: Annotated[Path | None, CONFIG_OPTION] = None,
    json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Give a device labels in this run, by which the other commands choose devices.

    Labels, and what pause, drain and remove say, hold in every run whose federation.toml names the same `roster`.

    Examples:
      edgefed fleet label board-07 room=lab power=mains --run edgefed-run
      edgefed fleet label board-07 room= -c federation.toml
    """
    from edgefed.cli.fleet_devices import known_devices, one_of, run_directory
    from edgefed.cli.output import write_json
    from edgefed.coordinator.roster import change_roster, parse_labels

    changes = parse_labels(labels, removable=True)
    directory = run_directory(run, config)
    one_of(known_devices(directory), device)
    roster = change_roster(directory / "roster.json", lambda before: before.with_labels([device], changes))
    now = roster.entry(device).labels
    if json:
        write_json({"device": device, "labels": now})
    else:
        typer.echo(f"{device}: {' '.join(f'{key}={value}' for key, value in now.items()) or 'no labels'}")


@with_option_groups
def pause(asked: _Asked, reason: Annotated[str, _REASON] = "") -> None:
    """Give devices no new task in this run for now. What they are working on, they finish and deliver.

    It holds until `edgefed fleet resume`, also over a restart of the aggregator, and can be said while none is running.
    You are asked where devices are chosen by label.

    Examples:
      edgefed fleet pause board-07 --run edgefed-run --reason 'the lab is too warm'
      edgefed fleet pause --label room=lab -c federation.toml --yes
    """
    _say("paused", asked, reason=reason)


@with_option_groups
def resume(asked: _Asked, fleet: Annotated[Path | None, _FLEET] = None) -> None:
    """Give devices tasks in this run again, after pause, drain or remove; they join the round that is open.

    With --fleet, it warns of those whose certificate was revoked: the broker keeps them out all the same.

    Examples:
      edgefed fleet resume board-07 --run edgefed-run
      edgefed fleet resume --label room=lab -c federation.toml --fleet kitchen
    """
    revoked = _revoked(fleet)
    chosen = _say("active", asked)
    for device in sorted(revoked.intersection(chosen)):
        typer.echo(
            f"edgefed: warning: the certificate of {device} was revoked: it stays out until it has another, by "
            f"`edgefed fleet enroll {device}` or a token",
            err=True,
        )


@with_option_groups
def drain(asked: _Asked, reason: Annotated[str, _REASON] = "") -> None:
    """Let devices finish the task they have in this run, and give them no other: before they are switched off.

    `edgefed fleet list` shows them as `draining`, and as `drained` once nothing of theirs is awaited any more. You are
    asked where devices are chosen by label.

    Examples:
      edgefed fleet drain board-07 --run edgefed-run
      edgefed fleet drain --label room=lab -c federation.toml --reason 'new shelves' --yes
    """
    _say("draining", asked, reason=reason)


@with_option_groups
def remove(
    asked: _Asked,
    reason: Annotated[str, _REASON] = "",
    fleet: Annotated[Path | None, _FLEET] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take their certificates back too; needs --fleet.")] = False,
) -> None:
    """Take devices out of this run at once.

    What they are working on counts no more, unless it was acknowledged already; what the broker retains of them is
    cleared. `edgefed fleet resume` takes them in again, with what they have for a round that is still open, but gives
    back no certificate.

    Examples:
      edgefed fleet remove board-07 --run edgefed-run
      edgefed fleet remove board-07 -c federation.toml --fleet kitchen --revoke --yes
    """
    from edgefed.errors import ConfigError

    if revoke and fleet is None:
        raise ConfigError("--revoke takes certificates back: name the fleet's directory with --fleet")
    chosen = _say("removed", asked, reason=reason)
    if revoke and fleet is not None:
        _revoke(fleet, chosen)


def _say(duty: Duty, asked: _Asked, *, reason: str = "") -> list[str]:
    """Writes the wish down and returns of whom."""
    from edgefed.cli.fleet_devices import run_directory
    from edgefed.cli.output import write_json
    from edgefed.coordinator.roster import change_roster

    run = run_directory(asked.run, asked.config)
    chosen = _chosen(run, asked.devices or [], asked.labels or [])
    if (asked.labels or duty == "removed") and not asked.yes:
        typer.confirm(f"{_WORDS[duty]}: {', '.join(chosen)}. Go on?", abort=True, err=True)
    now_unix_s = time.time()
    change_roster(
        run / "roster.json",
        lambda before: before.with_duty(chosen, duty, reason=reason.strip(), now_unix_s=now_unix_s),
    )
    if asked.json:
        write_json({"standing": duty, "devices": chosen})
    else:
        for device in chosen:
            typer.echo(f"{device}: {_WORDS[duty]}")
    return chosen


_WORDS: dict[str, str] = {
    "active": "gets tasks again",
    "paused": "gets no new task until it is resumed",
    "draining": "finishes its task and gets no other",
    "removed": "is removed from the federation",
}


def _chosen(run: Path, devices: list[str], labels: list[str]) -> list[str]:
    from edgefed.cli.fleet_devices import known_devices, one_of
    from edgefed.coordinator.roster import parse_labels
    from edgefed.errors import ConfigError

    if not devices and not labels:
        raise ConfigError("which devices? Name them, or choose them with --label KEY=VALUE")
    known = known_devices(run)
    wanted = parse_labels(labels).items()
    named = [one_of(known, device) for device in devices] if devices else list(known.values())
    chosen = [one.device for one in named if wanted <= one.entry.labels.items()]
    if not chosen:
        raise ConfigError(f"no device has the labels {' '.join(labels)}")
    return sorted(set(chosen))


def _revoked(fleet: Path | None) -> set[str]:
    """Returns the devices whose newest certificate was taken back; nothing where no fleet is looked at."""
    from edgefed.cli.output import told_where
    from edgefed.security.fleet_directory import FleetDirectory

    if fleet is None:
        return set()
    with told_where(fleet):
        newest = {one.identity: one for one in FleetDirectory(fleet).issued() if one.identity.role == "device"}
    return {identity.name for identity, one in newest.items() if one.revoked is not None}


def _revoke(fleet: Path, devices: list[str]) -> None:
    from datetime import datetime, timezone

    from edgefed.cli.fleet_members import tell_of_revocation
    from edgefed.cli.output import told_where
    from edgefed.security.fleet_directory import FleetDirectory
    from edgefed.security.identities import Identity

    with told_where(fleet):
        directory = FleetDirectory(fleet)
        for device in devices:
            serials = directory.revoke(Identity("device", device), now=datetime.now(timezone.utc))
            typer.echo(f"revoked {', '.join(f'{serial:x}' for serial in serials)} of {device}", err=True)
    tell_of_revocation(fleet)
