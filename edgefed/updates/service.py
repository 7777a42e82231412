"""The agent's service, as systemd sees it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from edgefed.errors import UpdateError

__all__ = ["AGENT", "Service", "State"]

AGENT = "edgefed-agent.service"
_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class State:
    """Of a service.

    Attributes:
        active: whether it runs and has said that it is ready.
        pid: of its main process; 0 where it has none.
        restarts: how often it ended by itself since somebody started it.
    """

    active: bool
    pid: int
    restarts: int


class Service:
    """One service, reached by the `systemctl` that is on the path.

    Args:
        unit: its name.
    """

    def __init__(self, unit: str = AGENT) -> None:
        self._unit = unit

    def restart(self) -> None:
        """Has it started anew, and does not wait for what comes of it.

        Raises:
            UpdateError: the service manager does not do so.
        """
        self._systemctl("restart", "--no-block", self._unit)

    def state(self) -> State:
        """Returns how it is.

        Raises:
            UpdateError: the service manager does not say.
        """
        said = self._systemctl("show", "--property=ActiveState,MainPID,NRestarts", self._unit)
        found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        pid, restarts = (found.get(key, "") for key in ("MainPID", "NRestarts"))
        return State(
            active=found.get("ActiveState") == "active",
            pid=int(pid) if pid.isdigit() else 0,
            restarts=int(restarts) if restarts.isdigit() else 0,
        )

    def _systemctl(self, *arguments: str) -> str:
        command = ["systemctl", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UpdateError(f"the service manager cannot be asked: {error}") from error
        if done.returncode != 0:
            raise UpdateError(f"{' '.join(command)} failed: {done.stderr.strip() or done.returncode}")
        return done.stdout
