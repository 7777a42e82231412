"""A device's visible state: published retained, kept current, and guarded against a second agent with the same id."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from typing import Any, Literal

import msgspec

from edgefed.errors import DeviceIdTaken, MessageError
from edgefed.protocol.messages.retained import DeviceState, decode_device_state
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Transport, Will
from edgefed.waiting import wait_at_most

__all__ = ["Presence"]

_log = logging.getLogger(__name__)

_LIVE = ("init", "ready", "downloading", "training", "uploading", "sleeping")
_CLAIM_S = 2.0
_SHORTEST_UPDATE_S = 1.0

Status = Literal["init", "ready", "downloading", "training", "uploading", "sleeping", "disconnected", "lost"]


class Presence:
    """Publishes a device's state, and finds out whether another agent does so too.

    Two agents with one id: the newcomer publishes `init` and listens. A live agent that sees a foreign `instance` under
    its own id publishes its state with an objection to that instance; the newcomer sees that and gives way. Of two that
    start at once, the earlier one objects; so it is with two that have worked for a while without hearing each other,
    because a connection was down. Left-over states of a process that is gone object to nobody.
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
        self._named = ""  # where the rival ran that the log has named
        self._shown_at_s = 0.0

    @property
    def will(self) -> Will:
        """What the broker publishes when this process vanishes."""
        return Will(self.topic, encode(msgspec.structs.replace(self.state, status="lost")))

    @property
    def has_claimed(self) -> bool:
        """Whether the device id is this process's: before that, nothing of it may stand in the place of another's."""
        return self._claimed

    async def claim(self, transport: Transport) -> None:
        """Takes the device id, and waits for an objection.

        Raises:
            DeviceIdTaken: another live agent has it.
        """
        await transport.subscribe(self.topic)  # before the first word, or an objection to it could be missed
        await self.publish(transport)
        try:
            await wait_at_most(self._rival_seen.wait(), _CLAIM_S)
        except asyncio.TimeoutError:
            self._claimed = True
            return
        assert self._rival is not None
        raise self._taken_by(self._rival)

    async def heard(self, transport: Transport, payload: bytes) -> bool:
        """Looks at a message on this device's own state topic.

        Returns:
            Whether another agent has spoken for the device that is this one's: it may have said more than its state.

        Raises:
            DeviceIdTaken: an earlier agent, out of reach while this one claimed the id, is back.
        """
        try:
            other = decode_device_state(payload)
        except MessageError:
            return False
        if other.instance == self.state.instance:
            if other.status == "lost":  # this process's own will: the connection was down, and is back
                await self.publish(transport)
            return False
        if other.objects_to:
            self._hear_objection(other)
        elif other.status not in _LIVE:
            if self._claimed:  # the last word of another must not stand for this device
                await self.publish(transport)
        elif self._claimed or self._is_earlier_than(other):
            self._name(other)
            objection = msgspec.structs.replace(self.state, objects_to=other.instance)
            await transport.publish(self.topic, encode(objection), retain=True)
            await self.publish(transport)
        return self._claimed

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

    def _name(self, rival: DeviceState) -> None:
        """Tells whoever looks at this device; a service that is started again and again is named once."""
        if rival.host != self._named:
            self._named = rival.host
            about = {"device": self._device, "pid": rival.pid, "host": rival.host}
            _log.warning("process %(pid)d on %(host)s has the device id %(device)s too: it is told to give way", about)

    def _hear_objection(self, other: DeviceState) -> None:
        if other.objects_to != self.state.instance:
            return
        if not self._claimed:
            self._rival = other
            self._rival_seen.set()
        elif other.status != "init" and not self._is_earlier_than(other):  # `init`: it is a newcomer itself
            raise self._taken_by(other)

    def _taken_by(self, rival: DeviceState) -> DeviceIdTaken:
        return DeviceIdTaken(
            f"device id {self._device!r} is in use by another agent (process {rival.pid} on {rival.host}): "
            "stop that one, or give this device another id"
        )

    def _is_earlier_than(self, other: DeviceState) -> bool:
        return (self.state.since_unix_s, self.state.instance) < (other.since_unix_s, other.instance)
