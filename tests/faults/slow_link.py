"""One update over one bad link, by the agent's own sender and the aggregator's own intake, over a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from edgefed.agent.uploads import Uploads
from edgefed.coordinator.intake import Intake
from edgefed.coordinator.options import Transfers
from edgefed.coordinator.outbox import Outbox
from edgefed.protocol.chunks import is_chunk
from edgefed.protocol.messages.down import Acknowledged, UploadGrant, UploadProgress, decode_down
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import DeviceState
from edgefed.protocol.messages.up import UpdateOffer, UpMessage, decode_up
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.records import RoundRecord
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Connected, ConnectionLost, Message, Transport, Will
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from tests.faults.proxy import FaultProxy

__all__ = ["Moved", "move_update"]

_TOPICS = Topics("test")


@dataclass(frozen=True)
class Moved:
    """What it took to move an update.

    Attributes:
        payload_bytes: of the update.
        up_bytes: all that left the device, whatever it was.
        cuts: how often the link was cut on the way.
        took_s: from the first word to the acknowledgement.
    """

    payload_bytes: int
    up_bytes: int
    cuts: int
    took_s: float

    @property
    def overhead(self) -> float:
        """All bytes by those of the update."""
        return self.up_bytes / self.payload_bytes


async def move_update(
    directory: Path,
    broker_port: int,
    payload_bytes: int,
    *,
    bytes_per_s: float,
    delay_s: float,
    cut_every_s: float,
    transfers: Transfers | None = None,
    seed: int = 0,
    device: str = "one",
) -> Moved:
    """Moves one update over a slow link that is cut now and then, and returns what it took."""
    directory.mkdir(parents=True, exist_ok=True)
    blob = directory / "update"
    content = os.urandom(payload_bytes)
    blob.write_bytes(content)
    link = FaultProxy(broker_port, seed=seed, delay_s=delay_s, bytes_per_s=bytes_per_s, cut_every_s=cut_every_s)
    async with _aggregator(directory, broker_port, transfers or Transfers(), device), link:
        started_s = time.monotonic()
        await _deliver(link.port, blob, hashlib.sha256(content).hexdigest(), device)
        return Moved(payload_bytes, link.up_bytes, link.cuts, time.monotonic() - started_s)


@contextlib.asynccontextmanager
async def _aggregator(directory: Path, port: int, transfers: Transfers, device: str) -> AsyncIterator[None]:
    options = MqttOptions("127.0.0.1", port, client_id=f"aggregator-of-{device}", session_expiry_s=0)
    async with connect_mqtt(options) as transport:
        outbox = Outbox(transport, _TOPICS)
        intake = Intake(
            directory / "incoming",
            transfers,
            tell=outbox.tell,
            arrived=lambda device, offer, _: outbox.tell(device, _acknowledged(offer)),
            broke=_raise,
            max_payload_bytes=lambda: transport.max_payload_bytes,
        )
        await transport.subscribe(_TOPICS.device(device, "up"))
        await transport.subscribe(_TOPICS.device(device, "state"))
        tasks = [asyncio.create_task(_listen(transport, intake)), asyncio.create_task(outbox.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await intake.close()


async def _listen(transport: Transport, intake: Intake) -> None:
    async for event in transport.events():
        if not isinstance(event, Message):
            continue
        topic = _TOPICS.parse_device(event.topic)
        assert topic is not None
        if topic.channel == "state":
            intake.give_up_on(topic.device)
        elif is_chunk(event.payload):
            intake.chunk(topic.device, event.payload)
        elif isinstance(word := decode_up(event.payload), UpdateOffer):
            intake.offer(topic.device, word)


async def _deliver(port: int, blob: Path, sha256: str, device: str) -> None:
    """Offers the update over the link, as an agent does, until it is acknowledged."""
    up, down = _TOPICS.device(device, "up"), _TOPICS.device(device, "down")
    will = Will(_TOPICS.device(device, "state"), encode(DeviceState(status="lost", instance="")))
    options = MqttOptions("127.0.0.1", port, client_id=device, session_expiry_s=0)
    async with connect_mqtt(options, will, retry_first=True) as transport:

        async def send(message: UpMessage) -> None:
            await transport.publish(up, encode(message))

        async def hear() -> None:
            async for event in transport.events():
                if isinstance(event, Connected):
                    uploads.ask_again()
                elif isinstance(event, ConnectionLost):
                    uploads.interrupt()
                elif isinstance(event, Message):
                    word = decode_down(event.payload)
                    if isinstance(word, UploadGrant | UploadProgress | Acknowledged):
                        uploads.hear(word)

        uploads = Uploads(transport, up, send)
        await transport.subscribe(down)
        hearing = asyncio.create_task(hear())
        try:
            await uploads.deliver(_offer(blob.stat().st_size, sha256, device), blob)
        finally:
            hearing.cancel()


def _acknowledged(offer: UpdateOffer) -> Acknowledged:
    return Acknowledged(run=offer.run, round=offer.round, sha256=offer.sha256, outcome="counted")


def _offer(size_bytes: int, sha256: str, device: str) -> UpdateOffer:
    record = RoundRecord(device=device, round=1, rank=2, held_rank=2, quantization="fp32", examples=10)
    return UpdateOffer(
        run="run",
        round=1,
        sha256=sha256,
        size_bytes=size_bytes,
        plan=Plan(rank=2, held_rank=2, quantization="fp32"),
        fingerprint="f" * 64,
        examples=10,
        record=record,
    )


def _raise(error: OSError) -> None:
    raise error
