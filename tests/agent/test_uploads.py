"""Delivering an update: what is said again, and what is not sent again, when the connection goes away."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from edgefed.agent.uploads import Uploads
from edgefed.protocol.chunks import decode_chunk
from edgefed.protocol.messages.down import Acknowledged, UploadGrant
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.up import EvaluationReport, UpdateOffer, UpMessage
from edgefed.protocol.records import RoundRecord

BLOB = bytes(range(256)) * 100
SHA256 = hashlib.sha256(BLOB).hexdigest()
RECORD = RoundRecord(device="one", round=1, rank=2, held_rank=2, quantization="fp32", examples=10)
OFFER = UpdateOffer(
    run="run",
    round=1,
    sha256=SHA256,
    size_bytes=len(BLOB),
    plan=Plan(rank=2, held_rank=2, quantization="fp32"),
    fingerprint="f" * 64,
    examples=10,
    record=RECORD,
)


class Line:
    """A transport that takes messages only while it is up; what waits meanwhile goes out later, unless given up."""

    max_payload_bytes = 1_000_000

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.chunks: list[int] = []
        self.waiting = 0

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float | None = None
    ) -> None:
        self.waiting += 1
        try:
            await self.up.wait()
        finally:
            self.waiting -= 1
        self.chunks.append(decode_chunk(payload).offset)


def grant(missing: list[tuple[int, int]]) -> UploadGrant:
    return UploadGrant(sha256=SHA256, missing=missing, chunk_bytes=1024, window_chunks=64)


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come")


async def test_what_was_under_way_when_the_connection_went_is_offered_and_not_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "update"
    path.write_bytes(BLOB)
    line, said = Line(), asyncio.Queue[UpMessage]()
    uploads = Uploads(line, "up", said.put)  # type: ignore[arg-type]
    delivering = asyncio.create_task(uploads.deliver(OFFER, path))
    assert await said.get() == OFFER
    uploads.hear(grant([(0, len(BLOB))]))
    await until(lambda: bool(line.waiting))
    uploads.interrupt()
    await until(lambda: not line.waiting)
    line.up.set()
    uploads.ask_again()
    assert await asyncio.wait_for(said.get(), 5) == OFFER
    assert line.chunks == []
    uploads.hear(grant([(len(BLOB) - 1024, len(BLOB))]))  # all but the last piece had arrived
    await until(lambda: bool(line.chunks))
    uploads.hear(Acknowledged(run="run", round=1, sha256=SHA256, outcome="counted"))
    assert (await delivering).outcome == "counted"
    assert line.chunks == [len(BLOB) - 1024]


async def test_what_was_said_before_is_no_answer_to_what_is_delivered_now() -> None:
    said: asyncio.Queue[UpMessage] = asyncio.Queue()
    uploads = Uploads(Line(), "up", said.put)  # type: ignore[arg-type]
    report = EvaluationReport(run="new", round=1, record=RECORD)
    for _ in range(20):
        uploads.ask_again()  # the link came and went, and there was nothing to deliver
    uploads.hear(Acknowledged(run="old", round=1, sha256="", outcome="counted"))
    delivering = asyncio.create_task(uploads.deliver(report, None))
    assert await said.get() == report
    await asyncio.sleep(0.05)
    assert said.empty(), "it is said once, not once more for each time that the link came back"
    uploads.hear(Acknowledged(run="old", round=1, sha256="", outcome="counted"))
    await asyncio.sleep(0.05)
    assert not delivering.done(), "another federation's round has the same number, and an evaluation no hash"
    uploads.hear(Acknowledged(run="new", round=1, sha256="", outcome="late"))
    assert (await delivering).outcome == "late"


async def test_what_is_heard_while_nothing_is_delivered_is_not_kept() -> None:
    said: asyncio.Queue[UpMessage] = asyncio.Queue()
    uploads = Uploads(Line(), "up", said.put)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        for _ in range(10_000):
            uploads.ask_again()
            uploads.hear(grant([(0, 1)]))
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 100_000
