"""Where things lie on a board that takes updates, and who writes there.

::

    <state>/updates/incoming/<anything>.bundle      by the agent, complete, by rename: this is what starts the installer
    <state>/health.json                             by the agent: `updates.health`
    /opt/edgefed/venv -> environments/<name>        by first boot and the installer: what the agent runs in
    /opt/edgefed/venv.old                           there while a new environment is on trial: the way back
    /opt/edgefed/updates/record.json                by the installer, for the agent to read: `updates.record`
    /opt/edgefed/updates/trial.json                 by the installer: what is on trial

The agent's own directory is its own: the installer, which is root, takes a bundle out of it without following any link
there, and writes nothing into it. Where an agent runs from another kind of installation there is no home, and nothing
to update.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SUFFIX", "Home", "incoming", "own_home"]

SUFFIX = ".bundle"


@dataclass(frozen=True, slots=True)
class Home:
    """Where edgefed is installed: `/opt/edgefed` on a board."""

    path: Path

    @property
    def link(self) -> Path:
        """What the agent's unit starts from."""
        return self.path / "venv"

    @property
    def updates(self) -> Path:
        """The installer's own directory."""
        return self.path / "updates"

    @property
    def record(self) -> Path:
        """What the installer has done."""
        return self.updates / "record.json"

    @property
    def trial(self) -> Path:
        """What it has begun and not closed."""
        return self.updates / "trial.json"


def incoming(state: Path) -> Path:
    """Returns the directory that an agent puts complete bundles into.

    Args:
        state: the agent's state directory.
    """
    return state / "updates" / "incoming"


def own_home(prefix: str = sys.prefix) -> Home | None:
    """Returns where this very process is installed; None where that is not one of edgefed's own environments."""
    environment = Path(prefix).resolve()
    return Home(environment.parent.parent) if environment.parent.name == "environments" else None
