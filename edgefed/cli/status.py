"""`edgefed status`: a fleet as its broker knows it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgefed.cli.fleet_view import FleetView
    from edgefed.protocol.topics import Topics
    from edgefed.security.authorship import Authorship
    from edgefed.transport.base import Transport
    from edgefed.transport.options import Broker

__all__ = ["as_member", "status"]


def status(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A federation.toml or agent.toml that names broker and fleet.")
    ] = None,
    host: Annotated[str, typer.Option(help="The broker; wins over the file.  [default: localhost]")] = "",
    port: Annotated[
        int | None, typer.Option(help="Its port; wins over the file.  [default: 1883]", min=1, max=65535)
    ] = None,
    fleet: Annotated[str, typer.Option(help="The fleet; wins over the file.")] = "",
    identity: Annotated[
        Path | None, typer.Option(help="A directory that `edgefed fleet enroll` wrote, for a broker with TLS.")
    ] = None,
    wait_s: Annotated[float, typer.Option(help="How long to listen for states.", min=0.1)] = 1.0,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep watching until Ctrl-C.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
) -> None:
    """Show the rounds, the devices, and what each is doing.

    Everything comes from the retained messages on the broker, so it needs neither the aggregator nor the devices to be
    up, and disturbs nobody. With a file that says `signed = true`, what its author has not signed is left aside.

    Examples:
      edgefed status --config federation.toml --watch
      edgefed status --host broker.local --fleet kitchen --json
      edgefed status --host broker.local --port 8883 --fleet kitchen --identity kitchen/observers/desk
    """
    from edgefed.errors import ConfigError
    from edgefed.stopping import run_stoppable

    if watch and json:
        raise ConfigError("--watch shows a live table and --json writes one document: give one of them")
    broker, name = _where(config, host, port, fleet)
    if identity is not None:
        broker = as_member(broker, identity)
    run_stoppable(_show(broker, name, wait_s=wait_s, watch=watch, as_json=json))


def _where(config: Path | None, host: str, port: int | None, fleet: str) -> tuple[Broker, str]:
    """Returns the broker and the fleet: what the command line says, else what the file does."""
    from msgspec.structs import replace

    from edgefed.errors import ConfigError
    from edgefed.transport.options import Broker

    broker, named = (Broker(), "") if config is None else _in_file(config)
    if not (fleet or named):
        raise ConfigError("which fleet? Name it with --fleet, or give a file with --config")
    if host or port:  # what the file says of a local port is not about another one
        broker = replace(broker, host=host or broker.host, port=port or broker.port, local=False)
    return broker, fleet or named


def _in_file(config: Path) -> tuple[Broker, str]:
    from edgefed.config import read_agent, read_federation
    from edgefed.errors import ConfigError

    try:
        options = read_federation(config)
    except ConfigError as no_federation:
        try:
            agent = read_agent(config)
        except ConfigError:
            raise no_federation from None
        return agent.broker, agent.fleet
    return options.broker, options.fleet


def as_member(broker: Broker, identity: Path) -> Broker:
    """Returns a broker as whoever has the files in a directory of `edgefed fleet enroll` connects to it."""
    from msgspec.structs import replace

    from edgefed.security.fleet_directory import CA_FILE, CERTIFICATE_FILE, KEY_FILE

    return replace(
        broker,
        tls_ca=str(identity / CA_FILE),
        tls_certificate=str(identity / CERTIFICATE_FILE),
        tls_key=str(identity / KEY_FILE),
        local=False,
    )


async def _show(broker: Broker, fleet: str, *, wait_s: float, watch: bool, as_json: bool) -> None:
    from edgefed.cli.fleet_view import FleetView
    from edgefed.cli.output import write_json, write_table
    from edgefed.transport.mqtt import connect_mqtt
    from edgefed.transport.options import guarded_client_id
    from edgefed.transport.signed import signed_as_told
    from edgefed.waiting import wait_at_most

    view = FleetView(fleet)
    seal = _observation(broker, view.topics)
    options = broker.mqtt(guarded_client_id(f"{fleet}-status"), session_expiry_s=0)
    async with connect_mqtt(options) as connected:
        transport = signed_as_told(connected, seal, log_level=logging.INFO)  # the view says it, once
        for topic_filter in view.filters:
            await transport.subscribe(topic_filter)
        if watch:
            await _watch(view, transport)
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await wait_at_most(_listen(view, transport), wait_s)
    if as_json:
        write_json(view.as_json())
        return
    from edgefed.cli.fleet_view import COLUMNS, describe_aggregator, describe_refusals

    for line in view.describe_distrusted():
        typer.echo(line, err=True)
    if view.aggregator is None and not view.devices:
        typer.echo(f"nothing is known of a fleet {fleet!r} at {broker.host}:{broker.port}", err=True)
        return
    typer.echo(describe_aggregator(view.aggregator) if view.aggregator else "no aggregator has been here")
    # A program that reads it gets everything.
    columns = view.fitting_columns(get_terminal_size().columns) if sys.stdout.isatty() else COLUMNS
    write_table(columns, [[row[COLUMNS.index(name)] for name in columns] for row in view.rows()])
    for line in describe_refusals(view.aggregator) if view.aggregator else ():
        typer.echo(line)


def _observation(broker: Broker, topics: Topics) -> Authorship | None:
    if not broker.signed:
        return None
    from edgefed.security.authorship import read_observation

    revocations = Path(broker.tls_crl) if broker.tls_crl else None
    return read_observation(topics, ca=Path(broker.tls_ca), revocations=revocations)


async def _listen(view: FleetView, transport: Transport) -> None:
    from edgefed.transport.base import Distrusted, Message

    async for event in transport.events():
        if isinstance(event, Message):
            view.hear(event.topic, event.payload)
        elif isinstance(event, Distrusted):
            view.distrusted[event.topic] = event.reason


async def _watch(view: FleetView, transport: Transport) -> None:
    from rich.live import Live

    listening = asyncio.create_task(_listen(view, transport))
    try:
        with Live(refresh_per_second=4) as live:
            while not listening.done():
                live.update(view.render(live.console.width))
                await asyncio.sleep(0.25)
    finally:
        listening.cancel()
