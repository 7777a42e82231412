"""How fast an update travels as a file through Mosquitto, against bare aiomqtt publishes of the same chunks.

    python -m benchmarks.transfer.run

Every measurement is two or three fresh processes beside one Mosquitto; the three kinds take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aiomqtt

from benchmarks.provenance import provenance
from edgefed.files import hash_file
from edgefed.protocol.chunks import CHUNK_HEADER_BYTES, Ranges, decode_chunk, encode_chunk, is_chunk
from edgefed.transport.base import Message, Transport
from edgefed.transport.blob_receiver import IncomingBlob
from edgefed.transport.blob_sender import Credit, send_ranges
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from tools.mosquitto import running_mosquitto

WINDOW = 8
AHEAD_CHUNKS = 64
REPORT_CHUNKS = 8


# ---------------------------------------------------------------------- edgefed, file to file


async def edgefed_receiver(port: int, directory: Path, total_bytes: int, chunk_bytes: int) -> None:
    """Put together one blob, reporting as it grows, and say when it is whole, checked and durable."""
    async with connect_mqtt(MqttOptions("127.0.0.1", port, "aggregator", max_payload_bytes=1 << 20)) as transport:
        await transport.subscribe("up")
        await transport.publish("down", b"ready", retain=True)
        blob: IncomingBlob | None = None
        reported_bytes = 0
        reports: set[asyncio.Task[None]] = set()
        async for event in transport.events():
            if not isinstance(event, Message) or not is_chunk(event.payload):
                continue
            chunk = decode_chunk(event.payload)
            if blob is None:
                blob = IncomingBlob(directory, chunk.sha256, total_bytes)
            blob.receive(chunk)
            if blob.complete:
                break
            if blob.received_bytes - reported_bytes >= REPORT_CHUNKS * chunk_bytes:
                reported_bytes = blob.received_bytes
                report = asyncio.create_task(transport.publish("down", b"%d" % reported_bytes))
                reports.add(report)
                report.add_done_callback(reports.discard)
        assert blob is not None
        await asyncio.to_thread(blob.finish)
        await asyncio.gather(*reports)
        await transport.publish("down", b"done")


async def edgefed_sender(port: int, path: Path, chunk_bytes: int) -> float:
    """Return the seconds from the first look at the file to the receiver's word that it has it."""
    async with connect_mqtt(MqttOptions("127.0.0.1", port, "device", max_payload_bytes=1 << 20)) as transport:
        ready, done = asyncio.Event(), asyncio.Event()
        credit = Credit(AHEAD_CHUNKS * chunk_bytes)
        listener = asyncio.create_task(_listen(transport, ready, done, credit))
        await transport.subscribe("down")
        await ready.wait()
        started_s = time.perf_counter()
        sha256 = await asyncio.to_thread(hash_file, path)
        everything = Ranges([(0, path.stat().st_size)])
        await send_ranges(
            transport, "up", path, sha256, everything, chunk_bytes=chunk_bytes, window=WINDOW, credit=credit
        )
        await done.wait()
        took_s = time.perf_counter() - started_s
        await transport.publish("down", b"", retain=True)
        listener.cancel()
        return took_s


async def _listen(transport: Transport, ready: asyncio.Event, done: asyncio.Event, credit: Credit) -> None:
    async for event in transport.events():
        if isinstance(event, Message) and event.payload == b"ready":
            ready.set()
        elif isinstance(event, Message) and event.payload == b"done":
            done.set()
        elif isinstance(event, Message) and event.payload:
            credit.confirm(int(event.payload))


# ---------------------------------------------------------------------- bare aiomqtt, memory to nowhere


async def bare_receiver(port: int, total_bytes: int) -> None:
    """Count payload bytes until there are enough, then say so."""
    async with aiomqtt.Client("127.0.0.1", port, identifier="aggregator") as client:
        await client.subscribe("up", qos=1)
        await client.publish("down", b"ready", qos=1, retain=True)
        arrived_bytes = 0
        async for message in client.messages:
            arrived_bytes += len(message.payload) - CHUNK_HEADER_BYTES
            if arrived_bytes >= total_bytes:
                break
        await client.publish("down", b"done", qos=1)


async def bare_sender(port: int, path: Path, chunk_bytes: int, *, listened_to: bool) -> float:
    """Return the seconds from the first publish to the last acknowledgement, or to the receiver's word."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    frames = [
        encode_chunk(sha256, lo, len(content), content[lo:hi])
        for lo, hi in Ranges([(0, len(content))]).chunked(chunk_bytes)
    ]
    async with aiomqtt.Client("127.0.0.1", port, identifier="device") as client:
        await client.subscribe("down", qos=1)
        messages = client.messages
        if listened_to:
            await anext(messages)
        started_s = time.perf_counter()
        await _in_lanes(frames, lambda frame: client.publish("up", frame, qos=1))
        if listened_to:
            while (await anext(messages)).payload != b"done":
                pass
        took_s = time.perf_counter() - started_s
        await client.publish("down", b"", qos=1, retain=True)
        return took_s


async def _in_lanes(frames: Iterable[bytes], publish: Callable[[bytes], Awaitable[None]]) -> None:
    rest = iter(frames)

    async def lane() -> None:
        for frame in rest:
            await publish(frame)

    await asyncio.gather(*(lane() for _ in range(WINDOW)))


# ---------------------------------------------------------------------- the measurement


def measure(kind: str, port: int, path: Path, chunk_bytes: int) -> float:
    """Return bytes per second of one transfer in fresh processes."""
    command = [sys.executable, "-m", "benchmarks.transfer.run", "--port", str(port), "--file", str(path)]
    command += ["--chunk-bytes", str(chunk_bytes), "--role"]
    with tempfile.TemporaryDirectory(dir=path.parent) as directory, contextlib.ExitStack() as stack:
        if kind != "bare publishes":
            receiver = stack.enter_context(subprocess.Popen([*command, f"{kind}: receiver", "--directory", directory]))
        sender = subprocess.run([*command, f"{kind}: sender"], stdout=subprocess.PIPE, check=True, timeout=120)
        if kind != "bare publishes" and receiver.wait(timeout=30):
            raise RuntimeError(f"the receiver of {kind!r} failed")
        return path.stat().st_size / float(sender.stdout)


def play(role: str, port: int, path: Path, directory: Path, chunk_bytes: int) -> None:
    """Be one of the processes."""
    total_bytes = path.stat().st_size
    if role == "edgefed: receiver":
        asyncio.run(edgefed_receiver(port, directory, total_bytes, chunk_bytes))
    elif role == "edgefed: sender":
        print(asyncio.run(edgefed_sender(port, path, chunk_bytes)))
    elif role == "bare with receiver: receiver":
        asyncio.run(bare_receiver(port, total_bytes))
    else:
        print(asyncio.run(bare_sender(port, path, chunk_bytes, listened_to="with receiver" in role)))


def summarize(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians in MB/s, and edgefed's share of each baseline, repeat by repeat."""
    summary: dict[str, Any] = {
        kind: {
            "median_mb_per_s": round(statistics.median(values) / 1e6, 1),
            "all_mb_per_s": [round(value / 1e6, 1) for value in values],
        }
        for kind, values in rates.items()
    }
    for baseline in ("bare publishes", "bare with receiver"):
        shares = [ours / theirs for ours, theirs in zip(rates["edgefed"], rates[baseline], strict=True)]
        summary[f"edgefed / {baseline}"] = round(statistics.median(shares), 3)
    return summary


def main() -> None:
    """Measure, print, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--chunk-kib", type=int, nargs="+", default=[96, 256])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where the files lie")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mosquitto.json")
    for hidden in ("--role", "--port", "--file", "--directory", "--chunk-bytes"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        play(
            options.role,
            int(options.port),
            Path(options.file),
            Path(options.directory or "."),
            int(options.chunk_bytes),
        )
        return
    kinds = ("bare publishes", "bare with receiver", "edgefed")
    results = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        path = Path(scratch, "update")
        path.write_bytes(random.Random(0).randbytes(options.mib << 20))
        for kib in options.chunk_kib:
            rates: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(options.repeats):
                for kind in kinds:
                    with running_mosquitto() as broker:
                        rates[kind].append(measure(kind, broker.port, path, kib << 10))
            results[f"{kib} KiB chunks"] = summarize(rates)
            print(json.dumps({f"{kib} KiB chunks": results[f"{kib} KiB chunks"]}, indent=2))
    config = {"mib": options.mib, "repeats": options.repeats, "window": WINDOW, "ahead_chunks": AHEAD_CHUNKS}
    options.out.write_text(
        json.dumps({"provenance": provenance(), "config": config, "results": results}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
