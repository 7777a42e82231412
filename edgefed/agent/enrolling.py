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
from edgefed.errors import ConfigError

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
    """Returns once the device has its certificate, and the token is gone where this process may remove it.

    It returns at once where there is a certificate already, or no token. What goes wrong is tried again, after
    twice as long each time: the operator may say yes tomorrow, or bring another token.

    Args:
        options: what `agent.toml` says; the files that it names are what enrolling writes.
        token: a file of `edgefed fleet token`; it need not be there.
        command: asks once to be enrolled, says on stderr what went wrong, and ends with 0 when it is done.
        manager: is told what the agent waits for.
        first_delay_s: how long to wait after the first failure; at most ten minutes after later ones.

    Raises:
        ConfigError: there is a token, and `agent.toml` does not say where the certificate would go.
    """
    if not token.exists():
        return
    certificate = options.broker.tls_certificate
    if not certificate:
        raise ConfigError(f"{token}: enrolling needs tls_ca, tls_certificate and tls_key named in [broker]")
    delay_s = first_delay_s
    while not Path(certificate).exists():
        manager.tell(f"STATUS=asks fleet {options.fleet} to be admitted as {options.device}")
        code = await _run(command)
        if code == 0:
            break
        _log.warning("not enrolled (exit code %d); trying again in %g s", code, delay_s)
        manager.tell(f"STATUS=not admitted to fleet {options.fleet}; trying again in {delay_s:g} s")
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
        _log.info("%s is used up, and cannot be removed from here: %s", token, error.strerror)
    else:
        _log.info("enrolled; the token is used up, and %s is removed", token)
