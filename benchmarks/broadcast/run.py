"""Bytes that the aggregator publishes for N devices of mixed ranks, over the largest adapter; see README.md."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
from pathlib import Path

from benchmarks.provenance import provenance
from edgefed.agent.downloads import Downloads
from edgefed.coordinator.broadcast import Broadcast
from edgefed.protocol.chunks import Ranges
from edgefed.protocol.messages.manifest import Part
from edgefed.protocol.messages.up import PartsWanted, UpMessage
from edgefed.protocol.rank_layers import boundaries, layers_within
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message, Transport
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from tools.mosquitto import running_mosquitto

RANKS = (64, 4, 8, 16, 32)
BYTES_PER_RANK = 344_064 // 8 * 2  # q and v of FLAN-T5-small in fp16
COUNTS = (2, 4, 8, 16, 32, 64)
RESULT = Path(__file__).parent / "results" / "broadcast.json"
TOPICS = Topics("bench")


def make_parts(directory: Path) -> tuple[list[Part], dict[str, Path]]:
    """Return the rank layers and their files, random content."""
    parts, files = [], {}
    for lo, hi in boundaries(RANKS, max(RANKS)):
        content = os.urandom((hi - lo) * BYTES_PER_RANK)
        sha256 = hashlib.sha256(content).hexdigest()
        files[sha256] = directory / sha256
        files[sha256].write_bytes(content)
        parts.append(Part(sha256=sha256, size_bytes=len(content), rank_lo=lo, rank_hi=hi))
    return parts, files


async def device(name: str, rank: int, parts: list[Part], directory: Path, port: int, broadcast: Broadcast) -> int:
    """Fetch what a device of this rank needs, and return its bytes."""
    async with connect_mqtt(MqttOptions("127.0.0.1", port, client_id=name, session_expiry_s=0)) as transport:

        async def send(message: UpMessage) -> None:
            assert isinstance(message, PartsWanted)
            broadcast.want(name, {part.sha256: Ranges(part.missing) for part in message.parts})

        downloads = Downloads(transport, TOPICS, send, directory)
        reader = asyncio.create_task(read(transport, downloads))
        wanted = parts[: layers_within([(part.rank_lo, part.rank_hi) for part in parts], rank)]
        await downloads.fetch("run", wanted)
        reader.cancel()
    return sum(part.size_bytes for part in wanted)


async def read(transport: Transport, downloads: Downloads) -> None:
    """Hand on what arrives."""
    async for event in transport.events():
        if isinstance(event, Message):
            downloads.receive(event.payload)


async def measure(count: int, port: int) -> dict[str, float]:
    """Return the figures for so many devices."""
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        parts, files = make_parts(directory)
        options = MqttOptions("127.0.0.1", port, client_id="aggregator", session_expiry_s=0)
        async with connect_mqtt(options) as transport:
            broadcast = Broadcast(transport, TOPICS, chunk_bytes=98_304, settle_s=5.0)
            broadcast.offer(files)
            names = [f"device-{index}" for index in range(count)]
            broadcast.expect(names)
            running = asyncio.create_task(broadcast.run())
            fetched = await asyncio.gather(
                *(
                    device(name, RANKS[i % len(RANKS)], parts, directory / name, port, broadcast)
                    for i, name in enumerate(names)
                )
            )
            running.cancel()
    largest = max(fetched)
    return {
        "devices": count,
        "published_bytes": broadcast.sent_bytes,
        "largest_adapter_bytes": largest,
        "ratio": broadcast.sent_bytes / largest,
        "separate_downloads_bytes": sum(fetched),
    }


def main() -> None:
    """Measure every count, write the result, print a table."""
    with running_mosquitto() as broker:
        rows = [asyncio.run(measure(count, broker.port)) for count in COUNTS]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"provenance": provenance(), "rows": rows}, indent=2) + "\n")
    for row in rows:
        separate = row["separate_downloads_bytes"] / row["largest_adapter_bytes"]
        print(f"{row['devices']:3.0f} devices: {row['ratio']:.3f} × the largest adapter (separately: {separate:.1f} ×)")


if __name__ == "__main__":
    main()
