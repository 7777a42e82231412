"""`edgefed fleet token | admit`: boards that enroll from the field."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefed.cli.fleet_members import DAYS_OPTION, FLEET_OPTION
from edgefed.files import in_shell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edgefed.security.admissions import Candidate
    from edgefed.security.fleet_directory import FleetDirectory

__all__ = ["admit", "allow_only", "token"]

_MEMBER_DAYS = 365


def token(
    device: Annotated[str, typer.Argument(help="A device id, or a pattern such as 'board-*'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new file for the board.", dir_okay=False)],
    fleet: Annotated[Path, FLEET_OPTION] = Path(),
    expires: Annotated[str, typer.Option(help="How long the token can be used: 24h, 7d.")] = "24h",
    claim: Annotated[str, typer.Option(help="The claim whose certificate the board asks with.")] = "field",
    days: Annotated[int, DAYS_OPTION] = _MEMBER_DAYS,
) -> None:
    """Make a token with which one board can enroll itself over the network, once.

    The file has the token, the fleet's authority, and the certificate of a claim, which all tokens share and with which
    the broker lets a board do nothing but ask. Bring it to the board, and start `edgefed agent --enroll FILE` there and
    `edgefed fleet admit` here. `edgefed fleet withdraw` takes back a token that was lost. --days is for the claim's
    certificate, where there is none yet.

    Examples:
      edgefed fleet token board-07 --fleet kitchen --output board-07.token
      edgefed fleet token 'board-*' -f kitchen -o /media/stick/edgefed.token --expires 7d
    """
    from datetime import datetime, timedelta, timezone

    from edgefed.cli.output import told_where
    from edgefed.cli.quantities import seconds
    from edgefed.errors import ConfigError
    from edgefed.security.admissions import Admissions
    from edgefed.security.fleet_directory import FleetDirectory
    from edgefed.security.identities import Identity
    from edgefed.security.tokens import write_token

    now = datetime.now(timezone.utc)
    span_s = seconds(expires, "--expires")
    if span_s > _MEMBER_DAYS * 86_400:
        raise ConfigError(f"--expires is {expires!r}; a token lasts a year at most")
    if output.exists():  # before anything is put on record
        raise ConfigError(f"{output} exists already; a token is never overwritten: name a new file")
    with told_where(output):
        directory = FleetDirectory(fleet)
        identity = Identity.parse(f"claim:{claim}")
        known = identity in directory.members(now)
        admissions = Admissions(directory)
        until = now + timedelta(seconds=span_s)
        made = admissions.give_token(device, identity, expires=until, now=now, days=days)
        try:
            write_token(output, made)
        except OSError:
            admissions.take_back(made)
            raise
    typer.echo(f"wrote {output}: token {made.id}, for {made.device}, until {made.expires:%Y-%m-%d %H:%M} UTC")
    if not known:
        typer.echo(
            f"the broker has to learn of the claim: edgefed fleet broker-config mosquitto --fleet {in_shell(fleet)}",
            err=True,
        )


def admit(
    fleet: Annotated[Path, FLEET_OPTION] = Path(),
    host: Annotated[str, typer.Option(help="The broker.  [default: the first that its certificate names]")] = "",
    port: Annotated[int, typer.Option(help="Its port.", min=1, max=65535)] = 8883,
    identity: Annotated[
        Path | None, typer.Option(help="The aggregator's directory.  [default: aggregator in the fleet's]")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Admit devices of this id or pattern without asking, and no others; may be repeated."),
    ] = None,
    then: Annotated[
        str,
        typer.Option("--then", help="A shell command that tells the broker of a new device, before it is answered."),
    ] = "",
    days: Annotated[int, DAYS_OPTION] = _MEMBER_DAYS,
) -> None:
    """Listen for boards with claim tokens, and make them devices of the fleet.

    A board's token, its name and its signing request have to be in order; then you are asked, unless --allow says it.
    It runs until Ctrl-C. The broker goes by its rules: give --then what writes them and lets the broker read them, or
    the new device gets in but may say nothing until somebody does that. It finds the id in $EDGEFED_DEVICE.

    Examples:
      edgefed fleet admit --fleet kitchen
      edgefed fleet admit -f kitchen --allow 'board-*' --then ./tell-the-broker.sh
    """
    from edgefed.cli.output import told_where
    from edgefed.security.fleet_directory import FleetDirectory
    from edgefed.security.tokens import check_pattern
    from edgefed.stopping import run_stoppable

    patterns = [check_pattern(pattern) for pattern in allow or []]
    with told_where(fleet):
        directory = FleetDirectory(fleet)
        run_stoppable(
            _listen(
                directory,
                host or _host(directory),
                port,
                identity or directory.path / "aggregator",
                days=days,
                approve=allow_only(patterns) if patterns else _asked(),
                then=then,
            )
        )


async def _listen(
    directory: FleetDirectory,
    host: str,
    port: int,
    identity: Path,
    *,
    days: int,
    approve: Callable[[Candidate], Awaitable[bool]],
    then: str,
) -> None:
    from edgefed.cli.status import as_member
    from edgefed.coordinator.admitting import Admitting
    from edgefed.protocol.topics import Topics
    from edgefed.security.admissions import Admissions
    from edgefed.security.fleet_directory import CERTIFICATE_FILE, KEY_FILE
    from edgefed.security.identities import AGGREGATOR
    from edgefed.security.signatures import read_signer
    from edgefed.transport.mqtt import connect_mqtt
    from edgefed.transport.options import Broker, guarded_client_id

    signer = read_signer(identity / CERTIFICATE_FILE, identity / KEY_FILE)
    if signer.identity != AGGREGATOR:
        raise typer.BadParameter(f"{identity} is of {signer.identity.common_name}: only the aggregator may admit")
    broker = as_member(Broker(host=host, port=port), identity)
    options = broker.mqtt(guarded_client_id(f"{directory.fleet}-admit"), session_expiry_s=0)
    async with connect_mqtt(options) as transport:
        admitting = Admitting(
            Topics(directory.fleet),
            Admissions(directory),
            signer,
            transport,
            days=days,
            approve=approve,
            welcome=_telling_broker(then),
            tell=typer.echo,
        )
        typer.echo(f"listening for boards of {directory.fleet} at {host}:{port}", err=True)
        await admitting.run()


def _host(directory: FleetDirectory) -> str:
    from edgefed.errors import ConfigError
    from edgefed.security.certificates import hosts_of
    from edgefed.security.identities import BROKER

    entries = [entry for entry in directory.issued() if entry.identity == BROKER]
    hosts = hosts_of(directory.certificate(entries[-1])) if entries else ()
    if not hosts:
        raise ConfigError("where is the broker? Name it with --host")
    return hosts[0]


def allow_only(patterns: list[str]) -> Callable[[Candidate], Awaitable[bool]]:
    """Returns what lets in whoever fits one of these patterns, and refuses the others by the list's name."""
    from edgefed.errors import NotAdmitted
    from edgefed.security.tokens import matches

    async def approve(candidate: Candidate) -> bool:
        if not any(matches(candidate.identity.name, pattern) for pattern in patterns):
            raise NotAdmitted(f"{candidate.identity.name} is not on the list of --allow that `admit` was given")
        return True

    return approve


def _asked() -> Callable[[Candidate], Awaitable[bool]]:
    from edgefed.cli.asking import yes_or_no

    async def approve(candidate: Candidate) -> bool:
        return await yes_or_no(f"admit {candidate.identity.name}, key {candidate.fingerprint[:16]}? [y/N] ")

    return approve


def _telling_broker(command: str) -> Callable[[Candidate], Awaitable[bool]]:
    import asyncio
    import os

    async def welcome(candidate: Candidate) -> bool:
        if not command:
            return True
        environment = {**os.environ, "EDGEFED_DEVICE": candidate.identity.name}
        process = await asyncio.create_subprocess_shell(command, env=environment)
        code = await process.wait()
        if code:
            typer.echo(f"{candidate.identity.name} is not answered yet: --then ended with {code}", err=True)
        return code == 0

    return welcome
