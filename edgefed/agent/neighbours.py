"""Whose energy a sensor measured: several agents on a machine share it, and a machine may play another board."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from edgefed.devices.usage import HardwareUse

__all__ = ["count_other_agents", "tell_whose_energy"]

_AGENT = b"edgefed.cli.agent_process"


def count_other_agents(root: Path = Path("/")) -> int:
    """Returns how many other agents run on this machine, as far as this process can see: not into other containers.

    Args:
        root: of the file system that `proc` is read from.
    """
    own = str(os.getpid())
    commands = (path for path in (root / "proc").glob("[0-9]*/cmdline") if path.parent.name != own)
    return sum(_is_agent(path) for path in commands)


def tell_whose_energy(use: HardwareUse, *, emulated: str | None, others: int) -> HardwareUse:
    """Returns the same use, whose energy says in `coverage` and `agents` what else is in it.

    Args:
        use: of the machine.
        emulated: the board that the machine plays; None for a machine that is itself.
        others: how many other agents it runs.
    """
    energy = use.energy
    if energy.joules is None or (emulated is None and not others):
        return use
    also = []
    if emulated is not None:
        also.append(f"of the machine that plays {emulated}, not of that board")
    if others:
        also.append(f"{others} other agent{'s' * (others > 1)} on the same machine included")
    energy = msgspec.structs.replace(energy, coverage="; ".join([energy.coverage, *also]), agents=1 + others)
    return msgspec.structs.replace(use, energy=energy)


def _is_agent(path: Path) -> bool:
    try:
        return _AGENT in path.read_bytes().split(b"\0")
    except OSError:  # it has just ended
        return False
