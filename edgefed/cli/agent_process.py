"""The agent's process proper: `python -m edgefed.cli.agent_process CONFIG [OPTION]...`, with `edgefed agent`'s options.

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
from edgefed.logs import start_logging, tell_failure
from edgefed.stopping import Stopped, run_stoppable

__all__ = ["log_as_told", "main"]

_OF_LOGGING = ("-v", "-vv", "--log-json")


def main(arguments: list[str]) -> int:
    """Runs the agent and returns its exit code."""
    log_as_told(arguments)
    manager = service_manager()
    try:
        options = read_agent(Path(arguments[0]))
        run_stoppable(_run(options, manager, arguments))
    except Stopped as stopped:
        return stopped.exit_code
    except EdgefedError as error:
        tell_failure(str(error), error.exit_code)
        return error.exit_code
    return 0


def log_as_told(arguments: list[str]) -> None:
    """Sends to stderr what -v or -vv ask for, in the form that --log-json or its absence asks for."""
    level = logging.DEBUG if "-vv" in arguments else logging.INFO if "-v" in arguments else logging.WARNING
    start_logging(level, as_json="--log-json" in arguments)


async def _run(options: AgentOptions, manager: ServiceManager, arguments: list[str]) -> None:
    async with manager.informed():
        if "--enroll" in arguments:
            token = arguments[arguments.index("--enroll") + 1]
            logging_options = [argument for argument in arguments if argument in _OF_LOGGING]
            command = [sys.executable, "-m", "edgefed.cli.enroll_process", arguments[0], token, *logging_options]
            await until_enrolled(options, Path(token), command, manager)
        await run_agent(options, once="--once" in arguments, wait_for_broker="--require-broker" not in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
