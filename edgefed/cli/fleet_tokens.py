"""`edgefed fleet tokens | withdraw`: the claim tokens that were given out."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefed.cli.fleet_members import FLEET_OPTION

if TYPE_CHECKING:
    from edgefed.security.admissions import TokenRecord

__all__ = ["list_tokens", "withdraw"]


def list_tokens(
    fleet: Annotated[Path, FLEET_OPTION] = Path(),
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that expired unused or were withdrawn; --json has them always.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
) -> None:
    """List the claim tokens: for whom, until when, and who used them. The tokens themselves are kept nowhere.

    An open token waits for its board; a used one is good for the board that used it, and for no other; what was
    withdrawn or has expired is refused, and listed with --all.

    Examples:
      edgefed fleet tokens --fleet kitchen
      edgefed fleet tokens -f kitchen --json
    """
    from edgefed.cli.output import told_where, write_json, write_table
    from edgefed.security.admissions import Admissions
    from edgefed.security.fleet_directory import FleetDirectory

    now = datetime.now(timezone.utc)
    with told_where(fleet):
        directory = FleetDirectory(fleet)
        records = Admissions(directory).given_out()
    if json:
        write_json({"fleet": directory.fleet, "tokens": [_as_json(record, now) for record in records]})
        return
    shown = [record for record in records if everything or record.state(now) in ("open", "used")]
    header = ("token", "for", "claim", "state", "until (UTC)", "used by", "used at (UTC)")
    write_table(header, [_as_row(record, now) for record in shown])


def withdraw(
    token: Annotated[str, typer.Argument(help="Its id, or the first few digits of it.")],
    fleet: Annotated[Path, FLEET_OPTION] = Path(),
) -> None:
    """Take a claim token back before it is used: `admit` refuses whoever comes with it, from now on.

    A board that has used its token is a device of the fleet: `edgefed fleet revoke` is for that.

    Examples:
      edgefed fleet withdraw 4f1c --fleet kitchen
    """
    from edgefed.cli.output import told_where
    from edgefed.security.admissions import Admissions
    from edgefed.security.fleet_directory import FleetDirectory

    with told_where(fleet):
        record = Admissions(FleetDirectory(fleet)).withdraw(token, datetime.now(timezone.utc))
    typer.echo(f"withdrew token {record.id}, which was for {record.device}")


def _as_row(record: TokenRecord, now: datetime) -> tuple[str, ...]:
    holder = record.holder
    used = ("", "") if holder is None else (holder.device, f"{holder.at:%Y-%m-%d %H:%M}")
    return record.id, record.device, record.claim, record.state(now), f"{record.expires:%Y-%m-%d %H:%M}", *used


def _as_json(record: TokenRecord, now: datetime) -> dict[str, object]:
    holder = record.holder
    return {
        "token": record.id,
        "device": record.device,
        "claim": record.claim,
        "state": record.state(now),
        "expires": record.expires.isoformat(),
        "withdrawn": record.withdrawn.isoformat() if record.withdrawn else None,
        "used_by": None
        if holder is None
        else {"device": holder.device, "key": holder.fingerprint, "at": holder.at.isoformat()},
    }
