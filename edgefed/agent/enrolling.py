"""A flashed board's way into its fleet: the claim token that was written beside agent.toml is used up before all else.

Nobody is there to start it again or to read what it says, so it goes on asking. What asks is a process of its own: the
library that makes keys and reads certificates takes megabytes that an idle agent need not carry.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from edgefed.agent.options import AgentOptions
from edgefed.agent.service_manager import ServiceManager

__all__ = ["until_enrolled"]

_log = logging.getLogger(__name__)
_FIRST_DELAY_S = 5.0
_LONGEST_DELAY_S = 600.0


async def until_enrolled(
    options: AgentOptions,
    token: Path,
    command: Sequence[str],
    manager: ServiceManager,
    *,
    first_delay_s: float = _FIRST_DELAY_S,
) -> None:
    """Returns once the device is enrolled, and its token gone where this process may remove it.

    Without a token it returns at once. What goes wrong is tried again, after twice as long each time: the operator may
    say yes tomorrow, or bring another token.

    Args:
        options: what `agent.toml` says.
        token: a file of `edgefed fleet token`; it need not be there.
        command: asks until there is an answer, says on stderr what went wrong, and ends with 0 where the device is
            enrolled.
        manager: is told what the agent waits for.
        first_delay_s: how long to wait after the first failure; ten minutes at most after later ones.
    """
    if not token.exists():
        return
    delay_s = first_delay_s
    manager.tell(f"STATUS=asks fleet {options.fleet} to be admitted as {options.device}")
    while code := await _run(command):
        _log.warning("not enrolled (exit code %d); trying again in %g s", code, delay_s)
        manager.tell(f"STATUS=not admitted to fleet {options.fleet} (exit code {code}); trying again")
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
    manager.tell(f"STATUS=enrolled in fleet {options.fleet} as {options.device}")
    _forget(token)


async def _run(command: Sequence[str]) -> int:
    """Runs a command that ends with this task at the latest, and returns its exit code."""
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # what it has written is enough to go on with, whenever it ends
            await asyncio.shield(process.wait())


def _forget(token: Path) -> None:
    try:
        token.unlink()
    except OSError as error:  # a read-only /etc: it was for one use, and has had it
        _log.info("%s is of no more use, and cannot be removed from here: %s", token, error.strerror)
    else:
        _log.info("%s is of no more use, and removed", token)
