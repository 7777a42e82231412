"""`edgefed flash ssh`: the agent onto a board that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgefed.cli.flash_options import Asked, DryRunOption, JsonOption, UpgradeOption
from edgefed.cli.option_groups import with_option_groups

__all__ = ["ssh"]


@with_option_groups
def ssh(
    host: Annotated[str, typer.Argument(metavar="HOST", help="As ssh takes it: an alias, user@host, ssh://host:port.")],
    ssh_config: Annotated[Path | None, typer.Option("--ssh-config", help="Instead of ~/.ssh/config.")] = None,
    *,
    asked: Asked,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until the agent is up, or says why not.")] = True,
    upgrade: UpgradeOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Put the agent onto a board that runs and is reached by ssh, and start it.

    The system's OpenSSH is used, with its configuration and known hosts; log in as root, or as somebody who may use
    sudo without a password. The wheels must fit the board, and are checked against it. The board is as it was until
    everything has come through; after a cut the same command goes on where it was.

    Examples:
      edgefed flash ssh nano.local --wheelhouse wheels --device board-07 --fleet kitchen --broker broker.local
      edgefed flash ssh ssh://pi@10.0.0.7:2222 --wheelhouse newer-wheels --upgrade
    """
    import sys

    from edgefed.cli.flash_view import progress_bar, show
    from edgefed.cli.output import told_where
    from edgefed.flashing.board import inspect
    from edgefed.flashing.changes import compare
    from edgefed.flashing.manifest import manifest
    from edgefed.flashing.ssh import check_running, interrupted, size_bytes, write
    from edgefed.flashing.ssh_connection import connect
    from edgefed.flashing.ssh_start import start
    from edgefed.flashing.ssh_start import wait as wait_until_up
    from edgefed.flashing.ssh_tree import SshTree

    with told_where(asked.wheelhouse), connect(host, config=ssh_config, terminal=sys.stdin.isatty()) as connection:
        check_running(connection)
        tree = SshTree(connection)
        board = inspect(tree)
        installed = manifest(asked.installation(board), board)
        changes = compare(tree, installed, upgrade=upgrade or interrupted(tree))
        if not dry_run:
            with progress_bar(size_bytes(changes), "sending") as progress:
                write(connection, tree, changes, progress)
            since_s = start(connection, changes)
            if wait:
                wait_until_up(connection, since_s, lambda line: typer.echo(f"{host}: {line}", err=True))
    show(changes, board, host, dry_run=dry_run, json=json)
    if wait and not dry_run and not json:
        typer.echo(f"{host}: the agent is up")
