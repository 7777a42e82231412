"""A device's visible state: published retained, kept current, and guarded against a second agent with the same id."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from typing import Any, Literal

import msgspec

from edgefed.errors import DeviceIdTaken, MessageError
from edgefed.protocol.messages import DeviceState, decode_device_state, encode
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Transport, Will

__all__ = ["Presence"]

_LIVE = ("init", "ready", "downloading", "training", "uploading", "sleeping")
_CLAIM_S = 2.0
_SHORTEST_UPDATE_S = 1.0

Status = Literal["init", "ready", "downloading", "training", "uploading", "sleeping", "disconnected", "lost"]


class Presence:
    """Publishes a device's state, and finds out whether another agent does so too.

    Two agents with one id: the newcomer publishes `init` and listens. A live agent that sees a foreign `instance` under
    its own id publishes its state with an objection to that instance; the newcomer sees that and gives way. Of two that
    start at once, the earlier one objects. Left-over states of a process that is gone object to nobody.
    """

    def __init__(self, topics: Topics, device: str) -> None:
        self.topic = topics.device(device, "state")
        self._device = device
        self.state = DeviceState(
            status="init",
            instance=uuid.uuid4().hex,
            since_unix_s=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        self._rival: DeviceState | None = None
        self._rival_seen = asyncio.Event()
        self._claimed = False
        self._shown_at_s = 0.0

    @property
    def will(self) -> Will:
        """What the broker publishes when this process vanishes."""
        return Will(self.topic, encode(msgspec.structs.replace(self.state, status="lost")))

    async def claim(self, transport: Transport) -> None:
        """Takes the device id, and waits for an objection.

        Raises:
            DeviceIdTaken: another live agent has it.
        """
        await self.publish(transport)
        await transport.subscribe(self.topic)
        try:
            await asyncio.wait_for(self._rival_seen.wait(), _CLAIM_S)
        except asyncio.TimeoutError:
            self._claimed = True
            return
        rival = self._rival
        assert rival is not None
        raise DeviceIdTaken(
            f"device id {self._device!r} is in use by another agent (process {rival.pid} on {rival.host}): "
            "stop that one, or give this device another id"
        )

    async def heard(self, transport: Transport, payload: bytes) -> None:
        """Looks at a message on this device's own state topic."""
        try:
            other = decode_device_state(payload)
        except MessageError:
            return
        if other.objects_to == self.state.instance and not self._claimed:
            self._rival = other
            self._rival_seen.set()
            return
        foreign = other.instance != self.state.instance and other.status in _LIVE and not other.objects_to
        if foreign and (self._claimed or self._is_earlier_than(other)):
            objection = msgspec.structs.replace(self.state, objects_to=other.instance)
            await transport.publish(self.topic, encode(objection), retain=True)
            await self.publish(transport)

    async def show(self, transport: Transport, status: Status, **fields: Any) -> None:
        """Publishes a new status; what is not named falls back to its default."""
        state = self.state
        self.state = DeviceState(
            status=status,
            instance=state.instance,
            since_unix_s=state.since_unix_s,
            host=state.host,
            pid=state.pid,
            **fields,
        )
        await self.publish(transport)

    async def progress(self, transport: Transport, **fields: Any) -> None:
        """Publishes changed fields of the same status, at most about once a second."""
        self.state = msgspec.structs.replace(self.state, **fields)
        if time.monotonic() - self._shown_at_s >= _SHORTEST_UPDATE_S:
            await self.publish(transport)

    async def publish(self, transport: Transport) -> None:
        """Publishes the state as it is (again)."""
        self._shown_at_s = time.monotonic()
        await transport.publish(self.topic, encode(self.state), retain=True)

    def _is_earlier_than(self, other: DeviceState) -> bool:
        return (self.state.since_unix_s, self.state.instance) < (other.since_unix_s, other.instance)
