"""Watching an agent that has just been started: whether it comes up, reaches its broker, and stays there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgefed.updates.health import Health, read_health
from edgefed.updates.service import State

__all__ = ["Patience", "Watched", "failure", "runs_in"]

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """What an agent is given to prove itself.

    Attributes:
        stays_s: how long one connection to the broker has to last.
        comes_s: how long it may take until such a connection has lasted.
        restarts: how often the agent may end by itself meanwhile.
    """

    stays_s: float = 60.0
    comes_s: float = 600.0
    restarts: int = 2


class Watched(Protocol):
    """What is asked for the state of the agent's service."""

    def state(self) -> State:
        """Returns how it is."""
        ...


def failure(
    service: Watched,
    directory: Path,
    environment: str,
    patience: Patience,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Returns why an agent is not good, once that is clear; an empty text once it has proved itself.

    Args:
        service: the agent's.
        directory: its state directory, where it shows its health.
        environment: name of the environment that it has to run in.
        patience: what it is given.
        clock: seconds, of a clock that nobody sets.
        sleep: waits for so many seconds.
    """
    began_s = clock()
    good: tuple[int, int] | None = None
    good_since_s = began_s
    came_up = False
    fewest = service.state().restarts  # systemd counts on from before in some states, and begins anew in others
    while True:
        state = service.state()
        fewest = min(fewest, state.restarts)
        if state.restarts - fewest > patience.restarts:
            return f"it ended by itself {state.restarts - fewest} times"
        health = _health(state, directory, environment)
        now_s = clock()
        came_up |= health is not None
        found = (health.pid, health.connections) if health is not None and health.connected else None
        if found != good:
            good, good_since_s = found, now_s
        elif good is not None and now_s - good_since_s >= patience.stays_s:
            return ""
        if now_s - began_s >= patience.comes_s:
            return _words(good is not None, came_up, patience)
        sleep(min(_LOOK_EVERY_S, patience.stays_s / 4))


def runs_in(state: State, directory: Path, environment: str) -> bool:
    """Whether the agent's process, ready or not, is one of that environment."""
    return _shown(state, directory, environment) is not None


def _health(state: State, directory: Path, environment: str) -> Health | None:
    """Returns what the agent shows; None where it is not ready, or another one has shown it."""
    return _shown(state, directory, environment) if state.active else None


def _shown(state: State, directory: Path, environment: str) -> Health | None:
    health = read_health(directory)
    if health is None or (health.pid, health.environment) != (state.pid, environment):
        return None
    return health


def _words(connected: bool, came_up: bool, patience: Patience) -> str:
    if connected:
        return f"within {patience.comes_s:g} s, no connection to the broker lasted {patience.stays_s:g} s"
    if came_up:
        return f"it was not connected to the broker after {patience.comes_s:g} s"
    return f"it was not ready after {patience.comes_s:g} s"
