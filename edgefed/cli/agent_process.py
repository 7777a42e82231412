"""The agent's process proper: `agent_process CONFIG [--enroll TOKEN] [--once] [--require-broker] [-v]`.

`edgefed agent` checks its arguments and becomes this program: without the command line's libraries an idle agent is a
quarter smaller, and on a board with 4 GB that is what counts. A flashed board's unit starts it at once; --enroll is for
that: the token need not be there, is tried until it works, and is removed when it has.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from edgefed.agent.enrolling import until_enrolled
from edgefed.agent.options import AgentOptions
from edgefed.agent.service_manager import ServiceManager, service_manager
from edgefed.agent.session import run_agent
from edgefed.config import read_agent
from edgefed.errors import EdgefedError
from edgefed.stopping import Stopped, run_stoppable

__all__ = ["LOG_FORMAT", "main", "set_up_logging"]

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(arguments: list[str]) -> int:
    """Runs the agent and returns its exit code."""
    set_up_logging(arguments)
    manager = service_manager()
    try:
        options = read_agent(Path(arguments[0]))
        run_stoppable(_run(options, manager, arguments))
    except Stopped as stopped:
        return stopped.exit_code
    except EdgefedError as error:
        sys.stderr.write(f"edgefed: {error}\n")
        return error.exit_code
    return 0


def set_up_logging(arguments: list[str]) -> None:
    """Sends to stderr what is asked for by -v or -vv."""
    level = logging.DEBUG if "-vv" in arguments else logging.INFO if "-v" in arguments else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format=LOG_FORMAT)


async def _run(options: AgentOptions, manager: ServiceManager, arguments: list[str]) -> None:
    async with manager.informed():
        if "--enroll" in arguments:
            token = arguments[arguments.index("--enroll") + 1]
            verbose = [argument for argument in arguments if argument in ("-v", "-vv")]
            command = [sys.executable, "-m", "edgefed.cli.enroll_process", arguments[0], token, *verbose]
            await until_enrolled(options, Path(token), command, manager)
        await run_agent(options, once="--once" in arguments, wait_for_broker="--require-broker" not in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
