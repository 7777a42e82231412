"""Telling systemd how the agent is: ready, alive, stopping (the protocol of sd_notify(3), which is one datagram).

The agent is ready once its configuration is read and its loop runs, not once it is connected: a broker that is away is
no reason for systemd to start the agent over and over. It is alive as long as the loop that does all its work turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, MutableMapping

__all__ = ["ServiceManager", "service_manager"]

_log = logging.getLogger(__name__)
_BEATS_PER_WATCHDOG = 3  # sd_watchdog_enabled(3) asks for two; one more forgives a late one


class ServiceManager:
    """Whoever started the agent as a service, or nobody.

    Args:
        address: of its datagram socket, as `NOTIFY_SOCKET` has it; empty where nobody listens.
        watchdog_s: after so long a silence it ends the agent; None where it does not watch.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @ stands for an abstract name
        self.watchdog_s = watchdog_s if address else None

    def tell(self, *assignments: str) -> bool:
        """Sends assignments such as `READY=1`, and returns whether they went out.

        A service manager that cannot be reached is no reason to stop working: it is logged.
        """
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
                end.setblocking(False)  # a full queue must not hold up the loop
                end.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            _log.warning("the service manager does not hear %s: %s", assignments[0], error)
            return False
        return True

    @contextlib.asynccontextmanager
    async def informed(self) -> AsyncIterator[None]:
        """Says that the service is ready, that it lives while the block runs, and that it stops when the block ends."""
        self.tell("READY=1")
        beating = asyncio.create_task(self._beat(), name="watchdog")
        try:
            yield
        finally:
            # The last sign of life: saying goodbye has the watchdog's time, and TimeoutStopSec after that.
            self.tell("STOPPING=1", "WATCHDOG=1")
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating

    async def _beat(self) -> None:
        while self.watchdog_s is not None:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / _BEATS_PER_WATCHDOG)


def service_manager(environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
    """Returns the service manager that the environment names; one that nothing is told where it names none.

    The variables are taken out of the environment: they are this process's, and not the worker's.
    """
    address = environment.pop("NOTIFY_SOCKET", "")
    watchdog_us = environment.pop("WATCHDOG_USEC", "")
    watched = environment.pop("WATCHDOG_PID", "")
    if not watchdog_us.isdigit() or int(watchdog_us) == 0 or watched not in ("", str(os.getpid())):
        return ServiceManager(address)
    return ServiceManager(address, int(watchdog_us) / 1e6)
