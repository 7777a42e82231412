"""`edgefed agent`: the device's side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["agent"]


def agent(
    config: Annotated[Path, typer.Option("--config", "-c", help="The device's agent.toml.")] = Path("agent.toml"),
    once: Annotated[bool, typer.Option("--once", help="Leave when the federation is over.")] = False,
    require_broker: Annotated[
        bool, typer.Option("--require-broker", help="Fail when no broker answers, instead of trying again.")
    ] = False,
) -> None:
    """Run the agent of one device.

    It connects to the broker, joins the rounds of its fleet's federations, trains on the device's own examples in a
    subprocess, and sends small updates. It runs until Ctrl-C or SIGTERM, goes on by itself after a lost broker, and
    after a kill delivers what it had finished.

    Examples:
      edgefed -v agent --config agent.toml         says on stderr what it does
      edgefed agent --config agent.toml --once     for one federation
    """
    import logging
    import os
    import sys

    from edgefed.config import read_agent

    read_agent(config)  # a mistake in it is told here
    level = logging.getLogger().getEffectiveLevel()
    flags = {"--once": once, "--require-broker": require_broker}
    arguments = [str(config), *(flag for flag, wanted in flags.items() if wanted)]
    verbose = {logging.INFO: ["-v"], logging.DEBUG: ["-vv"]}.get(level, [])
    os.execv(sys.executable, [sys.executable, "-m", "edgefed.cli.agent_process", *arguments, *verbose])
