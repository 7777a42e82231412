"""Sealing what leaves the device, where the aggregator says for whom."""

from __future__ import annotations

from pathlib import Path

from edgefed.agent.options import AgentOptions
from edgefed.agent.plan import CannotTakePart
from edgefed.protocol.messages.retained import RoundOpen

__all__ = ["check_sealing", "seal_update"]


def check_sealing(options: AgentOptions, announced: RoundOpen) -> None:
    """Sees to it that no update leaves the device in the clear where its owner forbids that.

    Raises:
        CannotTakePart: the aggregator has announced no key to seal for.
    """
    if options.broker.sealed and not announced.sealing_key:
        raise CannotTakePart("this device sends sealed updates only, and the aggregator has no `sealed = true`")


def seal_update(options: AgentOptions, announced: RoundOpen, path: Path) -> None:
    """Seals an update's file in place, where the announcement names a key.

    Raises:
        OSError: it cannot be read or written.
    """
    if not announced.sealing_key:
        return
    from edgefed.security.sealing import seal, sealing_context  # megabytes that others need not carry

    context = sealing_context(options.fleet, announced.run, announced.round, options.device)
    seal(path, path, announced.sealing_key, context)
