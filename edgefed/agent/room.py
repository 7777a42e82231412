"""A disk that takes no more: what that costs, and waiting until it takes files again.

A device on a full disk says so (`sleeping`, with the disk's own words as its note), takes part in nothing that it could
not keep, and goes on by itself once there is room.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from edgefed.agent.announcements import Announcements
from edgefed.agent.presence import Presence
from edgefed.errors import DiskFull
from edgefed.files import has_room, is_disk_trouble
from edgefed.protocol.messages.manifest import Part
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.transport.base import Transport

__all__ = ["Room", "is_lack_of_room", "needed_bytes"]

_log = logging.getLogger(__name__)

_FIRST_LOOK_S = 2.0
_LONGEST_LOOK_S = 60.0
_SMALL_FILES_BYTES = 256 << 10  # offer, plans, ledger, what is remembered of a transfer


def is_lack_of_room(error: BaseException) -> bool:
    """Whether work failed because the disk takes no more, here or in the worker."""
    return isinstance(error, DiskFull) or is_disk_trouble(error)


def needed_bytes(parts: Sequence[Part], directory: Path) -> int:
    """Returns how much a round may have to write: the layers that are not here, an update, what rounding took from it.

    An update and its residual are taken to be as large as all layers of the adapter, which no smaller rank exceeds.
    """
    whole_bytes = sum(part.size_bytes for part in parts)
    missing_bytes = sum(part.size_bytes for part in parts if not (directory / part.sha256).is_file())
    return missing_bytes + 2 * whole_bytes + _SMALL_FILES_BYTES


class Room:
    """Whether a device's state directory can take what a round needs.

    Args:
        transport: connected.
        presence: where it is said that there is no room.
        board: which round is in force.
        directory: the state directory.
        parts: where the adapter's layers are kept in it.
    """

    def __init__(
        self, transport: Transport, presence: Presence, board: Announcements, directory: Path, parts: Path
    ) -> None:
        self._transport = transport
        self._presence = presence
        self._board = board
        self._directory = directory
        self._parts = parts
        self._look_s = _FIRST_LOOK_S

    async def until_there_is(self, announced: RoundOpen) -> None:
        """Returns once there is room for a round; shows that there is none.

        Raises:
            RoundIsOver: the round closed first.
        """
        size_bytes = needed_bytes(announced.manifest.parts, self._parts)
        if await asyncio.to_thread(has_room, self._directory, size_bytes):
            return
        lacks = f"the disk of {self._directory} has no room for the {size_bytes / 1e6:.1f} MB that a round may take"
        await self._show(announced, f"{lacks}: make room, and this device goes on")
        await self._board.while_open(announced, self._until(size_bytes))

    async def after(self, announced: RoundOpen, error: BaseException) -> None:
        """Waits a while after a write that failed although there seemed to be room; longer each time.

        Raises:
            RoundIsOver: the round closed first.
        """
        await self._show(announced, f"the disk takes no more: {error}; make room, and this device goes on")
        waiting_s, self._look_s = self._look_s, min(_LONGEST_LOOK_S, 2 * self._look_s)
        await self._board.while_open(announced, asyncio.sleep(waiting_s))

    def was_enough(self) -> None:
        """A round's work is kept: the next trouble with the disk is a new one."""
        self._look_s = _FIRST_LOOK_S

    async def _until(self, size_bytes: int) -> None:
        look_s = _FIRST_LOOK_S
        while not await asyncio.to_thread(has_room, self._directory, size_bytes):
            await asyncio.sleep(look_s)
            look_s = min(_LONGEST_LOOK_S, 1.5 * look_s)

    async def _show(self, announced: RoundOpen, note: str) -> None:
        _log.warning("round %d: %s", announced.round, note)
        await self._presence.show(self._transport, "sleeping", round=announced.round, note=note[:4096])
