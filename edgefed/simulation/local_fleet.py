"""Broker, aggregator and agents as processes of this machine, none of which outlives the one that started them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from edgefed.errors import EdgefedError

__all__ = ["LocalFleet", "end_with_parent", "free_port", "wait_for_port"]

_STOP_PATIENCE_S = 10.0
_PR_SET_PDEATHSIG = 1
_LAST_WORDS = 12


def free_port() -> int:
    """Returns a TCP port of the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_for_port(port: int, *, patience_s: float = 20.0) -> None:
    """Returns once somebody listens on a loopback port.

    Raises:
        EdgefedError: nobody did in time.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + patience_s
    while loop.time() < until_s:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise EdgefedError(f"nothing listened on port {port} within {patience_s:g} s")


class LocalFleet:
    """Processes of the `edgefed` command, each with a log file; stopped together when the block ends.

    A process gets SIGTERM when the one that started it dies, however it dies (Linux).
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> LocalFleet:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, name: str, arguments: Sequence[str]) -> asyncio.subprocess.Process:
        """Starts `edgefed ARGUMENTS…` under a name that its log file gets."""
        with self.log(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "edgefed",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the one in charge, who stops the others in order
                preexec_fn=end_with_parent,
            )
        self._processes[name] = process
        return process

    def log(self, name: str) -> Path:
        """Where what a process says goes."""
        return self._logs / f"{name}.log"

    def last_words(self, name: str) -> str:
        """Returns the end of a process's log."""
        lines = self.log(name).read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LAST_WORDS:])

    def ended_early(self) -> list[str]:
        """Returns the names of processes that ended with an error."""
        return [name for name, process in self._processes.items() if process.returncode not in (None, 0)]

    async def stop(self) -> None:
        """Asks all processes to stop, last started first, and ends those that do not."""
        running = [process for process in reversed(self._processes.values()) if process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        waiting = [asyncio.ensure_future(process.wait()) for process in running]
        if waiting:
            await asyncio.wait(waiting, timeout=_STOP_PATIENCE_S)
        for process in running:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        await asyncio.gather(*waiting)


def end_with_parent() -> None:
    """In the child, before it becomes another program: be told when the parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
