"""How long an upload took is the aggregator's to tell, whatever the device says and however often it was cut off."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from edgefed.coordinator import intake as intake_module
from edgefed.coordinator.intake import Intake
from edgefed.coordinator.options import Transfers
from edgefed.protocol.chunks import encode_chunk
from edgefed.protocol.messages.down import DownMessage, UploadGrant
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.up import UpdateOffer
from edgefed.protocol.records import RoundRecord

BLOB = bytes(range(256)) * 16
HALF = len(BLOB) // 2
SHA256 = hashlib.sha256(BLOB).hexdigest()


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class Desk:
    """An intake with what it said and what it took in."""

    def __init__(self, directory: Path, transfers: Transfers | None = None) -> None:
        self.told: list[DownMessage] = []
        self.arrived: list[UpdateOffer] = []
        self.failed: list[OSError] = []
        self.intake = Intake(
            directory,
            transfers or Transfers(),
            tell=lambda _, message: self.told.append(message),
            arrived=lambda _, offer, __: self.arrived.append(offer),
            broke=self.failed.append,
            max_payload_bytes=lambda: 1_000_000,
        )

    def send(self, begin: int, end: int) -> None:
        self.intake.chunk("one", encode_chunk(SHA256, begin, len(BLOB), BLOB[begin:end]))

    async def upload_s(self) -> float | None:
        """Returns the seconds that the record of the update has, once it is in."""
        while not self.arrived:
            assert self.failed == []
            await asyncio.sleep(0.01)
        return self.arrived[0].record.upload_s


def offer() -> UpdateOffer:
    record = RoundRecord(
        device="one",
        round=1,
        rank=2,
        held_rank=2,
        quantization="fp32",
        examples=1,
        upload_bytes=len(BLOB),
        upload_s=9e9,
    )
    return UpdateOffer(
        run="0", round=1, sha256=SHA256, size_bytes=len(BLOB), plan=Plan(rank=2, held_rank=2, quantization="fp32"),
        fingerprint="", examples=1, record=record,
    )  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(intake_module, "time", clock)
    return clock


async def test_from_the_grant_to_the_last_byte(tmp_path: Path, clock: Clock) -> None:
    desk = Desk(tmp_path)
    desk.intake.offer("one", offer())
    clock.now_s += 2
    desk.send(0, HALF)
    clock.now_s += 3
    desk.send(HALF, len(BLOB))
    clock.now_s += 100  # checking the hash and syncing is not transferring
    assert await desk.upload_s() == pytest.approx(5.0)


async def test_time_without_a_grant_does_not_count(tmp_path: Path, clock: Clock) -> None:
    desk = Desk(tmp_path)
    desk.intake.offer("one", offer())
    clock.now_s += 2
    desk.send(0, HALF)
    desk.intake.give_up_on("one")
    clock.now_s += 1000
    desk.intake.offer("one", offer())
    clock.now_s += 4
    desk.send(HALF, len(BLOB))
    assert await desk.upload_s() == pytest.approx(6.0)


async def test_a_part_from_before_a_restart_leaves_the_time_unknown(tmp_path: Path, clock: Clock) -> None:
    first = Desk(tmp_path)
    first.intake.offer("one", offer())
    first.send(0, HALF)
    await first.intake.close()
    second = Desk(tmp_path)
    second.intake.offer("one", offer())
    clock.now_s += 1
    second.send(HALF, len(BLOB))
    assert await second.upload_s() is None


async def test_content_that_is_not_what_its_hash_says_costs_no_open_file(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.intake.offer("one", offer())
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    wrong = encode_chunk(SHA256, 0, len(BLOB), bytes(len(BLOB)))
    for again in range(3):
        desk.intake.chunk("one", wrong)
        for _ in range(1000):
            if sum(isinstance(word, UploadGrant) for word in desk.told) == again + 2:
                break
            await asyncio.sleep(0.01)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    desk.send(0, len(BLOB))
    await desk.upload_s()


async def test_what_is_not_wanted_any_more_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for under_way in (True, False):
        desk.intake.offer("one", offer())
        desk.send(0, HALF)
        if not under_way:
            desk.intake.give_up_on("one")
        assert any(tmp_path.glob("one/*"))
        desk.intake.forget("one", offer())
        assert not any(tmp_path.glob("one/*"))
        assert not desk.intake.busy
    assert desk.intake._spent_s == {}


async def test_an_update_that_is_whole_is_handed_on_though_the_next_one_finds_no_place(tmp_path: Path) -> None:
    """It used to wait for ever, and nobody was told that the disk had failed."""
    desk = Desk(tmp_path, Transfers(uploads_at_once=1))
    (tmp_path / "two").write_text("where a directory should be")
    desk.intake.offer("one", offer())
    desk.intake.offer("two", offer())
    desk.send(0, len(BLOB))
    for _ in range(1000):
        if desk.failed:
            break
        await asyncio.sleep(0.01)
    assert [one.sha256 for one in desk.arrived] == [SHA256]
    assert [type(error) for error in desk.failed] == [FileExistsError]
