"""`edgefed fleet init | enroll | rotate | revoke`: who belongs to a fleet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefed.cli.option_groups import with_option_groups
from edgefed.files import in_shell

if TYPE_CHECKING:
    from edgefed.security.issued import Issued

__all__ = [
    "DAYS_OPTION",
    "FLEET_OPTION",
    "certificate_json",
    "certificate_row",
    "certificate_state",
    "enroll",
    "init",
    "revoke",
    "rotate",
    "tell_of_revocation",
]

FLEET_OPTION: Any = typer.Option("--fleet", "-f", help="The fleet's directory.", file_okay=False)
DAYS_OPTION: Any = typer.Option("--days", help="For how many days the certificate counts.", min=1, max=36500)

_NAME = typer.Argument(help="A device id, observer:NAME, claim:NAME, role:aggregator or role:broker.")
_REQUEST = typer.Option("--csr", help="A signing request: the key stays where the request was made.", dir_okay=False)
_OUTPUT = typer.Option("--output", "-o", help="Write the files here, not into the fleet's directory.", file_okay=False)
_HOSTS = typer.Option("--broker-host", help="Name or address under which devices reach the broker; may be repeated.")
_MEMBER_DAYS, _AUTHORITY_DAYS = 365, 3650
_ENDS_SOON = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """How somebody gets a certificate, as it stands on the command line; a command takes it by `with_option_groups`."""

    fleet: Annotated[Path, FLEET_OPTION] = Path()
    csr: Annotated[Path | None, _REQUEST] = None
    output: Annotated[Path | None, _OUTPUT] = None
    days: Annotated[int, DAYS_OPTION] = _MEMBER_DAYS
    hosts: Annotated[list[str] | None, _HOSTS] = None


def init(
    directory: Annotated[Path, typer.Argument(help="A new directory for it.", file_okay=False)],
    hosts: Annotated[list[str], _HOSTS],
    name: Annotated[str, typer.Option(help="The fleet's name in every topic.  [default: the directory's]")] = "",
    days: Annotated[int, DAYS_OPTION] = _MEMBER_DAYS,
    authority_days: Annotated[int, typer.Option(help="The same of the authority itself.", min=1, max=36500)] = (
        _AUTHORITY_DAYS
    ),
) -> None:
    """Make a fleet: its authority, and the certificates of its broker and its aggregator.

    An authority that exists is never overwritten. Whoever has its key (ca/ca.key) can make anybody a member.

    Examples:
      edgefed fleet init kitchen --broker-host broker.local --broker-host 192.168.1.7
    """
    from edgefed.cli.output import told_where
    from edgefed.security.fleet_directory import FleetDirectory, Lifetimes

    lifetimes = Lifetimes(authority_days=authority_days, member_days=days)
    name = name or directory.absolute().name
    with told_where(directory):
        made = FleetDirectory.create(directory, name, hosts=hosts, lifetimes=lifetimes, now=_now())
    typer.echo(f"made the fleet {made.fleet} in {directory}")
    typer.echo(f"next: edgefed fleet broker-config mosquitto --fleet {in_shell(directory)}", err=True)


@with_option_groups
def enroll(name: Annotated[str, _NAME], asked: _Asked) -> None:
    """Make a device a member of the fleet: a certificate for a key that is made here, or made on the device.

    Copy the directory that is written to the device, and name its files in [broker] of agent.toml. The broker has to
    learn of the new member: `edgefed fleet broker-config`.

    Examples:
      edgefed fleet enroll board-07 --fleet kitchen
      edgefed fleet enroll board-07 -f kitchen --csr board-07.csr --output /media/stick
      edgefed fleet enroll observer:dashboard -f kitchen     may look, and nothing else
    """
    _give(name, asked, renew=False)
    _tell_broker(asked.fleet)


@with_option_groups
def rotate(name: Annotated[str, _NAME], asked: _Asked) -> None:
    """Give a member a new key and certificate.

    The present certificate counts until it ends, so that the device can go on until it has the new one; then take the
    old one back: `edgefed fleet revoke NAME --superseded`.

    Examples:
      edgefed fleet rotate board-07 --fleet kitchen
      edgefed fleet rotate role:broker -f kitchen --broker-host new-broker.local
    """
    _give(name, asked, renew=True)


def revoke(
    name: Annotated[str, _NAME],
    fleet: Annotated[Path, FLEET_OPTION] = Path(),
    superseded: Annotated[bool, typer.Option("--superseded", help="All but the newest certificate.")] = False,
) -> None:
    """Take a member's certificates back.

    The broker goes by it once it has the new rules and revocation list: run `edgefed fleet broker-config` again, and
    let the broker read it (SIGHUP for Mosquitto). A connection that is up then has no rights left. An aggregator with
    `tls_crl` goes by the new aggregator/crl.pem as soon as it has it, whatever the broker does.

    Examples:
      edgefed fleet revoke board-07 --fleet kitchen
    """
    from edgefed.cli.output import told_where
    from edgefed.security.fleet_directory import FleetDirectory
    from edgefed.security.identities import Identity

    with told_where(fleet):
        serials = FleetDirectory(fleet).revoke(Identity.parse(name), now=_now(), superseded_only=superseded)
    typer.echo(f"revoked {', '.join(f'{serial:x}' for serial in serials)} of {name}")
    tell_of_revocation(fleet)


def tell_of_revocation(fleet: Path) -> None:
    """Says on stderr who has to learn that certificates were taken back."""
    _tell_broker(fleet)
    typer.echo(f"and an aggregator on another machine has to get {fleet / 'aggregator' / 'crl.pem'}", err=True)


def _give(name: str, asked: _Asked, *, renew: bool) -> None:
    from edgefed.cli.output import told_where
    from edgefed.security.fleet_directory import FleetDirectory
    from edgefed.security.identities import Identity

    with told_where(asked.output or asked.fleet):
        place = FleetDirectory(asked.fleet).enroll(
            Identity.parse(name),
            days=asked.days,
            now=_now(),
            renew=renew,
            request=asked.csr,
            output=asked.output,
            hosts=tuple(asked.hosts or ()),
        )
    for file in sorted(place.glob("*.pem")):
        typer.echo(f"wrote {file}")


def _tell_broker(fleet: Path) -> None:
    typer.echo(
        f"the broker has to learn of it: edgefed fleet broker-config mosquitto --fleet {in_shell(fleet)}",
        err=True,
    )


def _now() -> datetime:
    return datetime.now(timezone.utc)


def certificate_state(entry: Issued, newest: dict[Any, Issued], now: datetime) -> str:
    """Returns in one or two words whether a certificate counts."""
    if entry.revoked is not None:
        return "revoked"
    if entry.ends <= now:
        return "expired"
    if entry.begins > now:
        return "not yet in force"
    if newest[entry.identity] is not entry:
        return "superseded"
    return "ends soon" if entry.ends - now < _ENDS_SOON else "in force"


def certificate_row(entry: Issued, newest: dict[Any, Issued], now: datetime) -> list[object]:
    """Returns what is told of a certificate: name, role, state, end, days left, serial."""
    left = max(0, (entry.ends - now).days)
    state = certificate_state(entry, newest, now)
    return [
        entry.identity.common_name,
        entry.identity.role,
        state,
        f"{entry.ends:%Y-%m-%d}",
        left,
        f"{entry.serial:x}",
    ]


def certificate_json(entry: Issued, newest: dict[Any, Issued], now: datetime) -> dict[str, object]:
    """Returns a certificate's dates, state and serial number."""
    return {
        "name": entry.identity.common_name,
        "role": entry.identity.role,
        "state": certificate_state(entry, newest, now),
        "begins": entry.begins.isoformat(),
        "ends": entry.ends.isoformat(),
        "revoked": entry.revoked.isoformat() if entry.revoked else None,
        "serial": f"{entry.serial:x}",
    }
