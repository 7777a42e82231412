"""One board's claim as a process of its own: `python -m edgefed.cli.enroll_process CONFIG TOKEN [-v] [--log-json]`.

`edgefed.cli.agent_process` starts it, on boards that were flashed with a claim token.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from edgefed.agent.enrollment import check_meant_for, enroll_board, is_enrolled
from edgefed.agent.options import AgentOptions
from edgefed.cli.agent_process import log_as_told
from edgefed.config import read_agent
from edgefed.errors import ConfigError, EdgefedError
from edgefed.logs import tell_failure
from edgefed.security.tokens import read_token
from edgefed.stopping import Stopped, run_stoppable

__all__ = ["main"]

_log = logging.getLogger("edgefed.cli.enroll_process")  # whose __name__ is __main__ when it runs


def main(arguments: list[str]) -> int:
    """Asks until there is an answer, writes what it brings, and returns the exit code."""
    log_as_told(arguments)
    token = Path(arguments[1])
    try:
        options = read_agent(Path(arguments[0]))
        if is_enrolled(options):  # its power went before the token was removed, or it was flashed once more
            _check_left_over(options, token)
            return 0
        key = run_stoppable(enroll_board(options, read_token(token)))
    except Stopped:
        return 1  # in good order or not: it is not enrolled
    except (EdgefedError, OSError) as error:
        code = error.exit_code if isinstance(error, EdgefedError) else 1
        tell_failure(str(error), code)
        return code
    _log.info("enrolled as %s of fleet %s (key %s)", options.device, options.fleet, key[:16])
    return 0


def _check_left_over(options: AgentOptions, file: Path) -> None:
    """Sees to it that a board which is enrolled was not meant to become another fleet's, or another device."""
    try:
        token = read_token(file)
    except ConfigError as error:  # it says nothing any more, and the board can do without
        _log.warning("%s is enrolled already, and the token of no use any more: %s", options.device, error)
        return
    check_meant_for(options, token)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
