"""The agent's process proper: `python -m edgefed.cli.agent_process CONFIG [OPTION]...`, with `edgefed agent`'s options.

`edgefed agent` checks its arguments and becomes this program: without the command line's libraries an idle agent is a
quarter smaller, and on a board with 4 GB that is what counts.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from edgefed.agent.options import AgentOptions
from edgefed.agent.service_manager import ServiceManager, service_manager
from edgefed.agent.session import run_agent
from edgefed.config import read_agent
from edgefed.errors import EdgefedError
from edgefed.logs import start_logging, tell_failure
from edgefed.stopping import Stopped, run_stoppable

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Runs the agent and returns its exit code."""
    level = logging.DEBUG if "-vv" in arguments else logging.INFO if "-v" in arguments else logging.WARNING
    start_logging(level, as_json="--log-json" in arguments)
    manager = service_manager()
    try:
        options = read_agent(Path(arguments[0]))
        run_stoppable(_run(options, manager, once="--once" in arguments, wait="--require-broker" not in arguments))
    except Stopped as stopped:
        return stopped.exit_code
    except EdgefedError as error:
        tell_failure(str(error), error.exit_code)
        return error.exit_code
    return 0


async def _run(options: AgentOptions, manager: ServiceManager, *, once: bool, wait: bool) -> None:
    async with manager.informed():
        await run_agent(options, once=once, wait_for_broker=wait)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
