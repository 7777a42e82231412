"""What mutual TLS, signatures and sealing cost: a 64 MiB update through Mosquitto, with and without, and an idle agent.

    python -m benchmarks.secured_transfer.run

Every transfer is two fresh processes beside one Mosquitto; the four kinds take turns. See README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from benchmarks.provenance import provenance
from edgefed.files import hash_file
from edgefed.protocol.chunks import Ranges, decode_chunk, is_chunk
from edgefed.protocol.messages.down import Acknowledged, UploadProgress, decode_down
from edgefed.protocol.messages.up import Ping, decode_up
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.security.authorship import read_authorship
from edgefed.security.broker_password import LOCAL_AGGREGATOR, broker_password
from edgefed.security.fleet_directory import FleetDirectory, Lifetimes
from edgefed.security.identities import AGGREGATOR, Identity
from edgefed.security.mosquitto_files import MosquittoOptions, write_mosquitto
from edgefed.security.sealing import SealingKey, seal, sealing_context
from edgefed.transport.base import Message, Transport
from edgefed.transport.blob_receiver import IncomingBlob
from edgefed.transport.blob_sender import Credit, send_ranges
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from edgefed.transport.options import guarded_client_id
from edgefed.transport.signed import SignedTransport
from tools.mosquitto import configured_mosquitto, free_port, running_mosquitto

KINDS = ("plain", "tls", "tls and signatures", "beside the broker", "sealed too")
ROLES = ("sender", "receiver")
TOPICS = Topics("bench")
DEVICE = Identity("device", "board")
UP, DOWN = TOPICS.device("board", "up"), TOPICS.device("board", "down")
RUN = "0a1b2c3d"
CONTEXT = sealing_context("bench", RUN, 1, "board")
WINDOW, AHEAD_CHUNKS = 8, 64
REPORT_CHUNKS = AHEAD_CHUNKS // 4  # as the aggregator's intake has it
RESULT = Path(__file__).parent / "results" / "secured_transfer.json"


def local_words(fleet: Path) -> dict[str, str]:
    """Returns the name and the password of the aggregator beside the broker."""
    password = broker_password(FleetDirectory(fleet), datetime.now(timezone.utc))
    return {"username": LOCAL_AGGREGATOR, "password": password}


@contextlib.asynccontextmanager
async def connected(kind: str, who: Identity, fleet: Path, port: int) -> Any:
    """Connects as a member does, with what the kind asks for."""
    is_local = kind == "beside the broker" and who == AGGREGATOR
    place = FleetDirectory(fleet).place(who)
    files = {"tls_ca": place / "ca.pem", "tls_cert": place / "certificate.pem", "tls_key": place / "key.pem"}
    options = MqttOptions(
        "127.0.0.1",
        port,
        guarded_client_id(who.name),
        max_payload_bytes=1 << 20,
        session_expiry_s=0,
        **({} if kind == "plain" or is_local else {name: str(file) for name, file in files.items()}),
        **(local_words(fleet) if is_local else {}),
    )
    async with connect_mqtt(options) as transport:
        if kind in ("plain", "tls"):
            yield transport
            return
        seal = read_authorship(
            TOPICS,
            who,
            fleet / f"{who.name}-memory",
            ca=files["tls_ca"],
            certificate=files["tls_cert"],
            key=files["tls_key"],
        )
        yield SignedTransport(transport, seal)


async def receive(transport: Transport, directory: Path, chunk_bytes: int, key: SealingKey | None) -> None:
    """Puts one blob together, tells how far it is as the aggregator does, and says when it is whole and on disk."""
    await transport.subscribe(UP)
    blob: IncomingBlob | None = None
    reported_bytes, sha256 = 0, ""
    reports: set[asyncio.Task[None]] = set()
    async for event in transport.events():
        if not isinstance(event, Message):
            continue
        if not is_chunk(event.payload):
            ping = decode_up(event.payload)
            assert isinstance(ping, Ping)
            await transport.publish(DOWN, encode(UploadProgress(sha256="0" * 64, received_bytes=0)))
            continue
        chunk = decode_chunk(event.payload)
        if blob is None:
            sha256 = chunk.sha256
            blob = IncomingBlob(directory, sha256, chunk.total_bytes)
        blob.receive(chunk)
        if blob.complete:
            break
        if blob.received_bytes - reported_bytes >= REPORT_CHUNKS * chunk_bytes:
            reported_bytes = blob.received_bytes
            word = encode(UploadProgress(sha256=sha256, received_bytes=reported_bytes))
            report = asyncio.create_task(transport.publish(DOWN, word))
            reports.add(report)
            report.add_done_callback(reports.discard)
    assert blob is not None
    path = await asyncio.to_thread(blob.finish)
    if key is not None:
        await asyncio.to_thread(key.open, path, path.with_name("opened"), CONTEXT)
    await asyncio.gather(*reports)
    await transport.publish(DOWN, encode(Acknowledged(run=RUN, round=1, sha256=sha256, outcome="counted")))


async def send(transport: Transport, path: Path, chunk_bytes: int, key: SealingKey | None) -> float:
    """Returns the seconds from the first look at the file to the receiver's word that it has it."""
    ready, done = asyncio.Event(), asyncio.Event()
    credit = Credit(AHEAD_CHUNKS * chunk_bytes)

    async def listen() -> None:
        async for event in transport.events():
            if isinstance(event, Message):
                word = decode_down(event.payload)
                if isinstance(word, Acknowledged):
                    done.set()
                elif isinstance(word, UploadProgress):
                    ready.set()
                    credit.confirm(word.received_bytes)

    listener = asyncio.create_task(listen())
    await transport.subscribe(DOWN)
    while not ready.is_set():
        await transport.publish(UP, encode(Ping(nonce="0", sequence=0)))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ready.wait(), 0.2)
    started_s = time.perf_counter()
    if key is not None:
        sealed = path.with_name("sealed")
        await asyncio.to_thread(seal, path, sealed, key.public, CONTEXT)
        path = sealed
    sha256 = await asyncio.to_thread(hash_file, path)
    everything = Ranges([(0, path.stat().st_size)])
    await send_ranges(transport, UP, path, sha256, everything, chunk_bytes=chunk_bytes, window=WINDOW, credit=credit)
    await done.wait()
    took_s = time.perf_counter() - started_s
    listener.cancel()
    return took_s


@contextlib.contextmanager
def broker(kind: str, fleet: FleetDirectory, scratch: Path) -> Iterator[tuple[int, int]]:
    """Runs a Mosquitto of its own, open to all or as `broker-config` writes it.

    Yields:
        The device's port and the aggregator's.
    """
    if kind == "plain":
        with running_mosquitto() as running:
            yield running.port, running.port
        return
    port, local_port, files = free_port(), free_port(), scratch / "broker"
    options = MosquittoOptions(
        installed_at=files, bind="127.0.0.1", port=port, local_port=local_port, max_payload_bytes=1 << 20
    )
    write_mosquitto(fleet, files, options, datetime.now(timezone.utc))
    with configured_mosquitto(files / "mosquitto.conf", port):
        yield port, local_port if kind == "beside the broker" else port


def measure(kind: str, ports: tuple[int, int], fleet: Path, path: Path, chunk_bytes: int) -> float:
    """Returns bytes per second of one transfer in fresh processes."""
    command = [sys.executable, "-m", "benchmarks.secured_transfer.run", "--kind", kind, "--fleet", str(fleet)]
    command += ["--file", str(path), "--chunk-bytes", str(chunk_bytes)]
    to_send, to_receive = (["--role", role, "--port", str(port)] for role, port in zip(ROLES, ports, strict=True))
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as directory,
        subprocess.Popen([*command, *to_receive, "--directory", directory]) as receiver,
    ):
        sender = subprocess.run([*command, *to_send], stdout=subprocess.PIPE, check=True, timeout=120)
        if receiver.wait(timeout=30):
            raise RuntimeError(f"the receiver of {kind!r} failed")
        return path.stat().st_size / float(sender.stdout)


async def play(options: argparse.Namespace) -> None:
    """Is one of the processes."""
    path, is_sender = Path(options.file), options.role == "sender"
    who, chunk_bytes = DEVICE if is_sender else AGGREGATOR, int(options.chunk_bytes)
    fleet = Path(options.fleet)
    key = SealingKey.read_or_make(fleet / "sealing.key") if options.kind == "sealed too" else None
    async with connected(options.kind, who, fleet, int(options.port)) as transport:
        if is_sender:
            print(await send(transport, path, chunk_bytes, key))
        else:
            await receive(transport, Path(options.directory), chunk_bytes, key)


def idle_mib(kind: str, fleet: FleetDirectory, port: int) -> float:
    """Returns the resident set, in MiB, of an agent that has been connected and idle for some seconds."""
    place = fleet.place(DEVICE)
    secured = f'tls_ca = "{place}/ca.pem"\ntls_certificate = "{place}/certificate.pem"\ntls_key = "{place}/key.pem"\n'
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
        config = Path(directory, "agent.toml")
        config.write_text(
            f'device = "board"\nfleet = "bench"\nstate = "{directory}/state"\n[data]\npath = "{directory}/data.jsonl"\n'
            f'[profile]\nmeasure = "quick"\n[broker]\nhost = "127.0.0.1"\nport = {port}\n'
            + ("" if kind == "plain" else secured)
            + ("" if kind in ("plain", "tls") else "signed = true\n")
            + ("sealed = true\n" if kind == "sealed too" else "")
        )
        agent = subprocess.Popen([sys.executable, "-m", "edgefed", "agent", "--config", str(config)])
        try:
            time.sleep(15)  # it claims its id, measures its machine, and settles
            return psutil.Process(agent.pid).memory_info().rss / 2**20
        finally:
            agent.terminate()
            agent.wait()


def summarize(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Returns medians in MB/s, and each kind's share of plain, repeat by repeat."""
    summary: dict[str, Any] = {
        kind: {
            "median_mb_per_s": round(statistics.median(values) / 1e6, 1),
            "all_mb_per_s": [round(value / 1e6, 1) for value in values],
        }
        for kind, values in rates.items()
    }
    for kind in KINDS[1:]:
        shares = [ours / plain for ours, plain in zip(rates[kind], rates["plain"], strict=True)]
        summary[f"{kind} / plain"] = round(statistics.median(shares), 3)
    for more, less in (("tls and signatures", "tls"), ("sealed too", "tls and signatures")):
        shares = [one / other for one, other in zip(rates[more], rates[less], strict=True)]
        summary[f"{more} / {less}"] = round(statistics.median(shares), 3)
    return summary


def main() -> None:
    """Measures, prints, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--chunk-kib", type=int, nargs="+", default=[96, 256])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    for hidden in ("--role", "--kind", "--port", "--fleet", "--file", "--directory", "--chunk-bytes"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        asyncio.run(play(options))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        path = scratch / "update"
        path.write_bytes(random.Random(0).randbytes(options.mib << 20))
        now = datetime.now(timezone.utc)
        fleet = FleetDirectory.create(scratch / "fleet", "bench", hosts=["127.0.0.1"], lifetimes=Lifetimes(), now=now)
        fleet.enroll(DEVICE, days=1, now=now)
        SealingKey.read_or_make(fleet.path / "sealing.key")
        for kib in options.chunk_kib:
            rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for _ in range(options.repeats):
                for kind in KINDS:
                    with broker(kind, fleet, scratch) as ports:
                        rates[kind].append(measure(kind, ports, fleet.path, path, kib << 10))
            results[f"{kib} KiB chunks"] = summarize(rates)
        idle: dict[str, float] = {}
        for kind in KINDS:
            if kind == "beside the broker":  # which is the aggregator's affair
                continue
            with broker(kind, fleet, scratch) as (port, _):
                idle[kind] = round(idle_mib(kind, fleet, port), 1)
        results["idle agent, resident MiB"] = idle
    print(json.dumps(results, indent=2))
    config = {"mib": options.mib, "repeats": options.repeats, "window": WINDOW, "ahead_chunks": AHEAD_CHUNKS}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(
        json.dumps({"provenance": provenance(), "config": config, "results": results}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
