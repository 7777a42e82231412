from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.errors import ChunkError, Disconnected, PayloadTooLarge
from edgefed.files import hash_file
from edgefed.protocol.chunks import Chunk, Ranges, decode_chunk, is_chunk
from edgefed.transport import blob_receiver, blob_sender
from edgefed.transport.base import Message, Transport
from edgefed.transport.blob_receiver import IncomingBlob
from edgefed.transport.blob_sender import Credit, send_ranges
from edgefed.transport.in_memory import InMemoryBroker
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from tools.mosquitto import RunningMosquitto

CONTENT = random.Random(0).randbytes(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def piece(lo: int, hi: int, content: bytes = CONTENT) -> Chunk:
    return Chunk(SHA256, lo, len(CONTENT), content[lo:hi])


def open_blob(directory: Path, **options: Any) -> IncomingBlob:
    return IncomingBlob(directory, SHA256, len(CONTENT), **options)


@pytest.fixture
def blob(tmp_path: Path) -> Iterator[IncomingBlob]:
    blob = open_blob(tmp_path / "blobs")
    yield blob
    blob.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


# ---------------------------------------------------------------------- putting a blob together


def test_a_blob_that_arrives_in_order_is_whole_and_alone(blob: IncomingBlob, tmp_path: Path) -> None:
    for lo, hi in Ranges([(0, len(CONTENT))]).chunked(7_001):
        assert not blob.complete
        assert blob.received_bytes == lo
        assert blob.receive(piece(lo, hi)) == hi - lo
    assert blob.complete
    assert blob.finish() == tmp_path / "blobs" / SHA256
    assert blob.finish().read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [SHA256]
    assert blob.receive(piece(0, 10)) == 0


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_order_overlap_and_repetition_gives_the_same_file(tmp_path_factory: Any, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("blobs")
    blob = open_blob(directory)
    held: set[int] = set()
    cuts = st.integers(0, 20)
    for lo, hi in data.draw(st.lists(st.tuples(cuts, cuts).map(sorted), max_size=12)):
        if lo < hi:
            span = range(lo * 5_000, hi * 5_000, 5_000)
            assert blob.receive(piece(lo * 5_000, hi * 5_000)) == 5_000 * len(set(span) - held)
            held |= set(span)
        if data.draw(st.booleans()):  # the receiver restarts
            blob.close()
            blob = open_blob(directory)
    assert blob.received_bytes == 5_000 * len(held)
    for lo, hi in blob.missing().chunked(9_000):
        blob.receive(piece(lo, hi))
    assert blob.finish().read_bytes() == CONTENT


def test_an_empty_blob_needs_no_chunk(tmp_path: Path) -> None:
    blob = IncomingBlob(tmp_path, hashlib.sha256(b"").hexdigest(), 0)
    assert blob.complete
    assert blob.finish().read_bytes() == b""


def test_an_unfinished_blob_cannot_be_finished(blob: IncomingBlob) -> None:
    blob.receive(piece(0, 60_000))
    with pytest.raises(ChunkError, match="lacks 40000 of 100000 bytes"):
        blob.finish()


def test_chunks_of_other_blobs_are_refused(blob: IncomingBlob) -> None:
    with pytest.raises(ChunkError, match="does not belong"):
        blob.receive(Chunk("ab" * 32, 0, len(CONTENT), b"data"))
    with pytest.raises(ChunkError, match="has 99 bytes, not 100000"):
        blob.receive(Chunk(SHA256, 0, 99, b"data"))
    assert blob.received_bytes == 0


@pytest.mark.parametrize("sha256", ["", "../" + SHA256[3:], SHA256.upper(), SHA256 + "0", "g" * 64])
def test_a_name_that_is_no_hash_is_refused(tmp_path: Path, sha256: str) -> None:
    with pytest.raises(ChunkError, match="64 lower-case hexadecimal digits"):
        IncomingBlob(tmp_path, sha256, 10)


def test_a_blob_over_the_limit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ChunkError, match="limit of 99999"):
        open_blob(tmp_path / "blobs", max_bytes=99_999)
    assert not (tmp_path / "blobs").exists()
    open_blob(tmp_path / "blobs", max_bytes=100_000).close()


def test_wrong_content_starts_over(blob: IncomingBlob) -> None:
    wrong = CONTENT[:50_000] + b"?" + CONTENT[50_001:]
    blob.receive(piece(0, 100_000, wrong))
    with pytest.raises(ChunkError, match="another sha256"):
        blob.finish()
    assert blob.received_bytes == 0
    blob.receive(piece(0, 100_000))
    assert blob.finish().read_bytes() == CONTENT


def test_what_has_arrived_cannot_be_overwritten(blob: IncomingBlob) -> None:
    blob.receive(piece(0, 90_000))
    assert blob.receive(piece(80_000, 100_000, bytes(100_000)[:80_000] + b"!" * 10_000 + CONTENT[90_000:])) == 10_000
    assert blob.finish().read_bytes() == CONTENT


def test_a_finished_blob_is_found_again(blob: IncomingBlob, tmp_path: Path) -> None:
    blob.receive(piece(0, 100_000))
    blob.finish()
    again = open_blob(tmp_path / "blobs")
    assert again.complete
    assert not again.missing()
    assert again.finish().read_bytes() == CONTENT
    again.discard()
    assert (tmp_path / "blobs" / SHA256).exists()


def test_a_discarded_blob_leaves_nothing(blob: IncomingBlob, tmp_path: Path) -> None:
    blob.receive(piece(0, 50_000))
    blob.discard()
    assert list((tmp_path / "blobs").iterdir()) == []
    assert blob.receive(piece(0, 50_000)) == 0


# ---------------------------------------------------------------------- surviving


@pytest.mark.parametrize(
    "claim",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"total_bytes": 100000}',
        b'{"total_bytes": 99, "received": [[0, 50000]]}',
        b'{"total_bytes": 100000, "received": [[0, 50000000]]}',
        b'{"total_bytes": 100000, "received": [[0, 100000]]}',
        b'{"total_bytes": 100000, "received": [[9, 3]]}',
        b"\xff\xfe",
    ],
)
def test_a_claim_that_cannot_be_is_not_believed(tmp_path: Path, claim: bytes) -> None:
    (tmp_path / f"{SHA256}.received").write_bytes(claim)
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT[:50_000])
    blob = open_blob(tmp_path)
    assert blob.received_bytes == 0
    blob.receive(piece(0, 100_000))
    assert blob.finish().read_bytes() == CONTENT


def test_the_disk_has_the_data_before_the_claim(
    blob: IncomingBlob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_receiver, "_CHECKPOINT_BYTES", 20_000)
    synced: list[int] = []
    claimed: list[int] = []
    part, real_fdatasync, real_replace = tmp_path / "blobs" / f"{SHA256}.part", os.fdatasync, Path.replace

    def fdatasync(fd: int) -> None:
        synced.append(os.fstat(fd).st_size)  # in-order arrival: what is written is what the size says
        real_fdatasync(fd)

    def replace(self: Path, target: Path) -> Path:
        claimed.append(Ranges.from_list(json.loads(self.read_bytes())["received"]).end)
        return real_replace(self, target)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(Path, "replace", replace)
    for lo, hi in Ranges([(0, 90_000)]).chunked(5_000):
        blob.receive(piece(lo, hi))
        if blob._behind is not None:
            blob._behind.result()
    blob.close()
    assert len(claimed) >= 4
    assert claimed[-1] == 90_000
    assert all(claim <= size for claim, size in zip(claimed, synced, strict=True))
    assert part.stat().st_size == 90_000


def test_a_receiver_killed_in_the_middle_goes_on_where_it_was(source: Path, tmp_path: Path) -> None:
    program = """
        import sys
        import time
        from pathlib import Path
        from edgefed.protocol.chunks import Chunk
        from edgefed.transport import blob_receiver
        source, directory, sha256 = sys.argv[1:]
        blob_receiver._CHECKPOINT_BYTES = 10_000
        content = Path(source).read_bytes()
        blob = blob_receiver.IncomingBlob(Path(directory), sha256, len(content))
        print(blob.received_bytes, flush=True)
        for lo in range(0, len(content), 1_000):
            blob.receive(Chunk(sha256, lo, len(content), content[lo : lo + 1_000]))
            time.sleep(0.002)  # about as a network would
            if lo == int(sys.stdin.readline()):
                print("there", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(source), str(tmp_path / "blobs"), SHA256]
    before = 0
    for stop_at in (25_000, 61_000, 99_000):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdin is not None
            assert receiver.stdout is not None
            assert int(receiver.stdout.readline()) >= before
            receiver.stdin.write(f"{stop_at}\n" * (stop_at // 1_000 + 1))
            receiver.stdin.flush()
            assert receiver.stdout.readline() == "there\n"
            receiver.kill()
        blob = open_blob(tmp_path / "blobs")
        before = blob.received_bytes
        blob.close()
        on_disk = (tmp_path / "blobs" / f"{SHA256}.part").read_bytes()
        for lo, hi in blob._received:
            assert on_disk[lo:hi] == CONTENT[lo:hi]
    assert before >= 30_000
    blob = open_blob(tmp_path / "blobs")
    for lo, hi in blob.missing().chunked(1_000):
        blob.receive(piece(lo, hi))
    assert blob.finish().read_bytes() == CONTENT


def test_a_disk_that_takes_no_more_is_an_error_and_not_a_loss(blob: IncomingBlob) -> None:
    blob.receive(piece(0, 30_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            blob.receive(piece(30_000, 60_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(blob.missing()) == [(30_000, 100_000)]
    blob.receive(piece(30_000, 100_000))
    assert blob.finish().read_bytes() == CONTENT


def test_hash_file_is_sha256(source: Path) -> None:
    assert hash_file(source) == SHA256
    source.write_bytes(CONTENT * 25)  # over one read
    assert hash_file(source) == hashlib.sha256(CONTENT * 25).hexdigest()


# ---------------------------------------------------------------------- sending


async def receive_blob(transport: Transport, blob: IncomingBlob, *, pause_s: float = 0.0) -> None:
    """Take chunks until the blob is complete."""
    async for event in transport.events():
        if isinstance(event, Message) and is_chunk(event.payload):
            blob.receive(decode_chunk(event.payload))
            if pause_s:
                await asyncio.sleep(pause_s)
            if blob.complete:
                return


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 20), chunk_bytes=st.integers(500, 40_000), window=st.integers(1, 12))
def test_a_blob_gets_through_loss_repetition_and_disorder(
    tmp_path_factory: Any, seed: int, chunk_bytes: int, window: int
) -> None:
    directory = tmp_path_factory.mktemp("transfer")
    (directory / "source").write_bytes(CONTENT)

    async def transfer() -> Path:
        broker = InMemoryBroker(seed=seed, loss=0.2, duplication=0.1, reorder=0.3)
        blob = open_blob(directory / "blobs")
        async with broker.connect("device") as device, broker.connect("aggregator") as aggregator:
            await aggregator.subscribe("up")
            receiving = asyncio.create_task(receive_blob(aggregator, blob))
            while not blob.complete:
                await send_ranges(
                    device, "up", directory / "source", SHA256, blob.missing(), chunk_bytes=chunk_bytes, window=window
                )
                await asyncio.sleep(0)
            await receiving
        return await asyncio.to_thread(blob.finish)

    assert asyncio.run(transfer()).read_bytes() == CONTENT


async def test_only_what_is_asked_for_is_sent_and_progress_told(source: Path) -> None:
    broker = InMemoryBroker()
    async with broker.connect("a") as a:
        await a.subscribe("up")
        told: list[int] = []
        wanted = Ranges([(10, 2_500), (99_000, 100_000)])
        await send_ranges(a, "up", source, SHA256, wanted, chunk_bytes=1_000, on_progress=told.append)
        await a.publish("up", b"end")
        chunks = []
        async for event in a.events():
            if isinstance(event, Message):
                if event.payload == b"end":
                    break
                chunks.append(decode_chunk(event.payload))
        assert [(chunk.offset, chunk.end) for chunk in chunks] == [
            (10, 1_010),
            (1_010, 2_010),
            (2_010, 2_500),
            (99_000, 100_000),
        ]
        assert all(bytes(chunk.data) == CONTENT[chunk.offset : chunk.end] for chunk in chunks)
        assert {(chunk.sha256, chunk.total_bytes) for chunk in chunks} == {(SHA256, len(CONTENT))}
        assert sorted(told) == [490, 1_000, 1_000, 1_000]


async def test_chunks_fit_what_the_transport_takes(source: Path) -> None:
    async with InMemoryBroker(max_payload_bytes=2_000).connect("a") as a:
        told: list[int] = []
        everything = Ranges([(0, len(CONTENT))])
        await send_ranges(a, "up", source, SHA256, everything, chunk_bytes=96 << 10, on_progress=told.append)
        assert sum(told) == len(CONTENT)
        assert max(told) == 2_000 - 52
    async with InMemoryBroker(max_payload_bytes=52).connect("a") as a:
        with pytest.raises(PayloadTooLarge):
            await send_ranges(a, "up", source, SHA256, everything, chunk_bytes=96 << 10)


async def test_a_file_that_is_not_as_long_as_asked_is_refused(source: Path) -> None:
    async with InMemoryBroker().connect("a") as a:
        with pytest.raises(ChunkError, match="has 100000 bytes and cannot give"):
            await send_ranges(a, "up", source, SHA256, Ranges([(0, 100_001)]), chunk_bytes=1_000)

        def shrink(_: int) -> None:
            os.truncate(source, 50_500)

        with pytest.raises(ChunkError, match="ended at 50500 while"):
            await send_ranges(
                a, "up", source, SHA256, Ranges([(0, 100_000)]), chunk_bytes=1_000, on_progress=shrink, window=1
            )


async def test_sending_ends_when_the_transport_is_closed(source: Path) -> None:
    broker = InMemoryBroker()
    async with broker.connect("a") as a:
        broker.drop("a")
        everything = Ranges([(0, len(CONTENT))])
        sending = asyncio.create_task(send_ranges(a, "up", source, SHA256, everything, chunk_bytes=1_000))
        await asyncio.sleep(0)
        await a.close()
        with pytest.raises(Disconnected):
            await sending


# ---------------------------------------------------------------------- credit


async def transfer_to_a_slow_receiver(source: Path, directory: Path, credit: Credit | None) -> int:
    """Return how many messages a broker with a queue of 20 dropped."""
    broker = InMemoryBroker(queue_limit=20)
    blob = open_blob(directory)
    async with broker.connect("device") as device, broker.connect("aggregator") as aggregator:
        await aggregator.subscribe("up")

        async def receive() -> None:
            async for event in aggregator.events():
                if isinstance(event, Message):
                    blob.receive(decode_chunk(event.payload))
                    if credit is not None:
                        credit.confirm(blob.received_bytes)
                    await asyncio.sleep(0.001)

        receiving = asyncio.create_task(receive())
        everything = Ranges([(0, len(CONTENT))])
        await send_ranges(device, "up", source, SHA256, everything, chunk_bytes=1_000, credit=credit)
        await aggregator.close()
        await receiving
    blob.close()
    return broker.dropped


async def test_credit_keeps_a_slow_receivers_queue_from_overflowing(source: Path, tmp_path: Path) -> None:
    assert await transfer_to_a_slow_receiver(source, tmp_path / "1", None) > 20
    assert await transfer_to_a_slow_receiver(source, tmp_path / "2", Credit(10_000)) == 0


async def test_credit_holds_back_until_confirmed() -> None:
    credit = Credit(3_000, received_bytes=500)
    for _ in range(3):
        await credit.take(1_000)
    waiting = asyncio.create_task(credit.take(1_000))
    credit.confirm(400)  # an old report
    credit.confirm(500)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    credit.confirm(1_500)
    await asyncio.wait_for(waiting, 5)
    credit.confirm(1 << 40)  # as from a receiver that had more than we knew
    await asyncio.wait_for(credit.take(3_000), 5)


async def test_credit_goes_on_when_reports_are_lost() -> None:
    credit = Credit(1_000, patience_s=0.01)
    await asyncio.wait_for(credit.take(1_000), 5)
    await asyncio.wait_for(credit.take(1_000), 5)


async def test_a_piece_larger_than_the_credit_goes_alone() -> None:
    credit = Credit(1_000)
    await asyncio.wait_for(credit.take(5_000), 5)
    waiting = asyncio.create_task(credit.take(1))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    credit.confirm(5_000)
    await asyncio.wait_for(waiting, 5)


# ---------------------------------------------------------------------- over a real broker


@pytest.mark.broker
async def test_64_mib_through_a_real_broker(mosquitto: RunningMosquitto, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(64 << 20))
    sha256 = hash_file(source)
    blob = IncomingBlob(tmp_path / "blobs", sha256, 64 << 20)

    def options(client_id: str) -> MqttOptions:
        return MqttOptions("127.0.0.1", mosquitto.port, client_id, reconnect_max_s=0.2)

    async with connect_mqtt(options("device")) as device, connect_mqtt(options("aggregator")) as aggregator:
        await aggregator.subscribe("up")
        credit = Credit(16 << 20, patience_s=0.5)
        broken = False

        async def receive() -> None:
            nonlocal broken
            async for event in aggregator.events():
                if isinstance(event, Message):
                    blob.receive(decode_chunk(event.payload))
                    credit.confirm(blob.received_bytes)
                    if blob.received_bytes > 32 << 20 and not broken:  # the broker dies in the middle
                        broken = True
                        mosquitto.kill()
                        mosquitto.restart()
                    if blob.complete:
                        return

        receiving = asyncio.create_task(receive())
        while not blob.complete:
            await send_ranges(device, "up", source, sha256, blob.missing(), chunk_bytes=256 << 10, credit=credit)
            await asyncio.sleep(0.05)
        await receiving
    assert broken
    finished = await asyncio.to_thread(blob.finish)
    assert hash_file(finished) == sha256


# --- pieces that suit the link ----------------------------------------------------------------------------------------


class Taking:
    """A transport that keeps what it is given; each message takes so long by the loop's clock."""

    max_payload_bytes = 1_000_000

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float | None = None
    ) -> None:
        self.chunks.append(decode_chunk(payload))


@pytest.mark.parametrize(
    ("quick_s", "slow_s", "sizes"),
    [
        (1e9, 2e9, [16 << 10, 32 << 10, 64 << 10, 96 << 10, 96 << 10]),
        (-1.0, -0.5, [16 << 10, 8 << 10, 8 << 10, 8 << 10, 8 << 10]),
    ],
    ids=["quick", "slow"],
)
async def test_pieces_grow_on_a_quick_link_and_shrink_on_a_slow_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_s: float, slow_s: float, sizes: list[int]
) -> None:
    monkeypatch.setattr(blob_sender, "_QUICK_S", quick_s)
    monkeypatch.setattr(blob_sender, "_SLOW_S", slow_s)
    content = bytes(1_000_000)
    source = tmp_path / "blob"
    source.write_bytes(content)
    line = Taking()
    wanted = Ranges([(10, 500_000), (600_000, 1_000_000)])
    sha256 = hashlib.sha256(content).hexdigest()
    await send_ranges(line, "up", source, sha256, wanted, chunk_bytes=96 << 10, window=1)  # type: ignore[arg-type]
    assert [len(chunk.data) for chunk in line.chunks[:5]] == sizes
    sent = Ranges([(chunk.offset, chunk.end) for chunk in line.chunks])
    assert sent.to_list() == wanted.to_list()
    assert sum(len(chunk.data) for chunk in line.chunks) == wanted.total_bytes


async def test_credit_counts_messages_too() -> None:
    credit = Credit(1_000_000, ahead_pieces=2, patience_s=1e6)
    await credit.take(10)
    await credit.take(10)
    third = asyncio.create_task(credit.take(10))
    await asyncio.sleep(0.01)
    credit.confirm(9)  # not yet a whole piece
    await asyncio.sleep(0.01)
    assert not third.done()
    credit.confirm(10)
    await asyncio.wait_for(third, 5)
