"""`edgefed fleet broker-config`: what the broker has to know about a fleet."""

from __future__ import annotations

from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from edgefed.cli.fleet_members import FLEET_OPTION
from edgefed.files import in_shell

__all__ = ["Kind", "Version", "broker_config"]


class Kind(str, Enum):
    """Which broker."""

    MOSQUITTO = "mosquitto"
    EMQX = "emqx"


class Version(str, Enum):
    """Of Mosquitto: 2.1 has other words for some options."""

    V2_0 = "2.0"
    V2_1 = "2.1"


def broker_config(
    kind: Annotated[Kind, typer.Argument(help="Which broker.")],
    fleet: Annotated[Path, FLEET_OPTION] = Path(),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory to write.  [default: broker-config in the fleet's]")
    ] = None,
    installed_at: Annotated[
        Path | None, typer.Option(help="Where the files will be on the broker's machine.  [default: --output]")
    ] = None,
    version: Annotated[Version, typer.Option("--version", help="Of Mosquitto.")] = Version.V2_0,
    acl_plugin: Annotated[
        Path | None, typer.Option(help="Mosquitto 2.1: its plugin for ACL files.  [default: where it is found here]")
    ] = None,
    bind: Annotated[str, typer.Option(help="Mosquitto: the address to listen on.  [default: all]")] = "",
    port: Annotated[int, typer.Option(help="Mosquitto: the port.", min=1, max=65535)] = 8883,
    local_port: Annotated[
        int | None,
        typer.Option(
            help="Mosquitto: a port of 127.0.0.1 at which the aggregator beside the broker comes in by a password, "
            "without TLS.  [default: none]",
            min=1,
            max=65535,
        ),
    ] = None,
    max_payload_bytes: Annotated[
        int, typer.Option(help="Mosquitto: the largest message it takes.", min=4096, max=268_000_000)
    ] = 262_144,
) -> None:
    """Write the broker's configuration: mutual TLS, who may say and hear what, the revocation list, and limits.

    Run it again whenever somebody was enrolled, rotated or revoked, and let the broker read it: Mosquitto does so on
    SIGHUP. For EMQX 5, the rules are printed as JSON for its built-in authorization database, a row for each user name
    (PUT /api/v5/authorization/sources/built_in_database/rules/users/NAME replaces one), and on stderr the settings
    without which they protect nothing. The rules for EMQX follow its documentation; they were not tried on one.

    Examples:
      edgefed fleet broker-config mosquitto --fleet kitchen --output /etc/mosquitto/edgefed
      edgefed fleet broker-config mosquitto -f kitchen -o /etc/mosquitto/edgefed --local-port 1884
      edgefed fleet broker-config mosquitto -f kitchen -o out --installed-at /mosquitto/config --version 2.1
      edgefed fleet broker-config emqx -f kitchen > rules.json
    """
    from edgefed.cli.output import told_where, write_json
    from edgefed.protocol.topics import Topics
    from edgefed.security.broker_password import LOCAL_AGGREGATOR, PASSWORD_FILE
    from edgefed.security.emqx_rules import EMQX_SETTINGS, emqx_rules
    from edgefed.security.fleet_directory import FleetDirectory
    from edgefed.security.identities import AGGREGATOR
    from edgefed.security.mosquitto_files import ACL_PLUGIN, MosquittoOptions, find_acl_plugin, write_mosquitto

    now = datetime.now(timezone.utc)
    if kind is Kind.EMQX:
        if local_port is not None:
            raise typer.BadParameter("--local-port is for Mosquitto: EMQX has no such listener from here")
        with told_where(fleet):
            directory = FleetDirectory(fleet)
            members = directory.members(now)
            former = {entry.identity: None for entry in directory.issued() if entry.identity not in members}
        write_json(emqx_rules(Topics(directory.fleet), members, former))
        typer.echo(f"emqx.conf has to say:\n\n{EMQX_SETTINGS}", err=True)
        return
    if local_port == port:
        raise typer.BadParameter(f"--local-port is another port than the {port} for everybody else")
    if acl_plugin is not None and version is Version.V2_0:
        raise typer.BadParameter("--acl-plugin is for --version 2.1: 2.0 reads ACL files without a plugin")
    target = output or fleet / "broker-config"
    options = MosquittoOptions(
        installed_at=(installed_at or target).absolute(),
        version=version.value,
        acl_plugin=acl_plugin or find_acl_plugin() or ACL_PLUGIN,
        bind=bind,
        port=port,
        local_port=local_port,
        max_payload_bytes=max_payload_bytes,
    )
    with told_where(target):
        written = write_mosquitto(FleetDirectory(fleet), target, options, now)
    for file in written:
        typer.echo(f"wrote {file}")
    typer.echo(
        f"Mosquitto must be able to read them: chown -R mosquitto: {in_shell(target)} "
        "(written again, they keep that owner)"
    )
    if local_port is not None:
        typer.echo(
            "the aggregator, on the same machine, comes in with these lines of [broker] in federation.toml:\n"
            f'  host = "127.0.0.1"\n  port = {local_port}\n  local = true\n  username = "{LOCAL_AGGREGATOR}"\n'
            f'  password_file = "{FleetDirectory(fleet).place(AGGREGATOR).absolute() / PASSWORD_FILE}"'
        )
    if version is Version.V2_1:
        typer.echo(f"its plugin for ACL files has to be at {options.acl_plugin}: else name it with --acl-plugin")
