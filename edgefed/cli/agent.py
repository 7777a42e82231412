"""`edgefed agent`: the device's side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgefed.agent.options import AgentOptions

__all__ = ["agent"]


def agent(
    config: Annotated[Path, typer.Option("--config", "-c", help="The device's agent.toml.")] = Path("agent.toml"),
    once: Annotated[bool, typer.Option("--once", help="Leave when the federation is over.")] = False,
    require_broker: Annotated[
        bool, typer.Option("--require-broker", help="Fail when no broker answers, instead of trying again.")
    ] = False,
    enroll: Annotated[
        Path | None,
        typer.Option(help="A file of `edgefed fleet token`: enroll with it first, where that is not done yet."),
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log a JSON object a line.")] = False,
) -> None:
    """Run the agent of one device.

    It connects to the broker, joins the rounds of its fleet's federations, trains on the device's own examples in a
    subprocess, and sends small updates. It runs until Ctrl-C or SIGTERM, goes on by itself after a lost broker, and
    after a kill delivers what it had finished.

    With --enroll, a board that has no certificate yet makes its key, asks the fleet's operator for a certificate
    (`edgefed fleet admit`), and writes both where [broker] names them.

    Examples:
      edgefed -v agent --config agent.toml         says on stderr what it does
      edgefed agent --config agent.toml --once     for one federation
      edgefed -v agent -c agent.toml --log-json    for a program that collects logs
      edgefed agent --enroll board-07.token        a new board's first start; does no harm later
    """
    import logging
    import os
    import sys

    from edgefed.config import read_agent
    from edgefed.logs import start_logging

    level = logging.getLogger().getEffectiveLevel()
    start_logging(level, as_json=log_json)
    options = read_agent(config)  # a mistake in it is told here
    if enroll is not None:
        _enroll(options, enroll, wait_for_broker=not require_broker)
    flags = {"--once": once, "--require-broker": require_broker, "--log-json": log_json}
    arguments = [str(config), *(flag for flag, wanted in flags.items() if wanted)]
    verbose = {logging.INFO: ["-v"], logging.DEBUG: ["-vv"]}.get(level, [])
    os.execv(sys.executable, [sys.executable, "-m", "edgefed.cli.agent_process", *arguments, *verbose])


def _enroll(options: AgentOptions, token: Path, *, wait_for_broker: bool) -> None:
    from edgefed.agent.enrollment import enroll_board, is_enrolled
    from edgefed.cli.output import told_where
    from edgefed.security.tokens import read_token
    from edgefed.stopping import run_stoppable

    if is_enrolled(options):
        return
    with told_where(token):
        key = run_stoppable(enroll_board(options, read_token(token), wait_for_broker=wait_for_broker))
    typer.echo(f"enrolled as {options.device} of fleet {options.fleet} (key {key[:16]})", err=True)
