"""Every kind of file that is written, with room for some of it only: the old content or the new, and no third thing.

The operating system limits the size of files here (`RLIMIT_FSIZE`), which anybody may ask of it. Whole federations on
small disks are among the cases of `tests/faults/cases.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgefed.agent.downloads import Downloads
from edgefed.agent.frames import Failed, Finished, Work, decode_answer, encode_frame
from edgefed.agent.options import PrivacyLimits
from edgefed.agent.privacy_ledger import PrivacyLedger
from edgefed.agent.room import is_lack_of_room
from edgefed.agent.state_directory import StateDirectory
from edgefed.aggregation.exchange import Delivered
from edgefed.aggregation.lora_exchange import LoraExchange
from edgefed.aggregation.options import ServerOptimizer
from edgefed.coordinator.run_directory import RunDirectory, disk_trouble_told
from edgefed.coordinator.sightings import Sightings, read_sightings
from edgefed.devices.profile import read_profile
from edgefed.errors import StoreError
from edgefed.files import has_room, is_disk_trouble
from edgefed.lora.files import write_adapter
from edgefed.lora.low_rank import LowRank
from edgefed.models.checkpoint import linear_shapes
from edgefed.protocol.chunks import Chunk, encode_chunk
from edgefed.protocol.messages.manifest import Part, Plan
from edgefed.protocol.messages.up import UpdateOffer, UpMessage
from edgefed.protocol.records import RoundRecord
from edgefed.protocol.tasks import LoraMethod
from edgefed.protocol.topics import Topics
from edgefed.security.memory import LatestTime
from edgefed.training.privacy_budget import PrivacyCost, PrivacySpent, SpentSteps
from edgefed.transport.blob_receiver import IncomingBlob
from tests.agent.conftest import announced, work
from tests.federation.stand_in import make_paper_model

__all__ = ["announced", "work"]  # fixtures

MODEL_SIZE, RANK = 24, 4


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its place."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def try_with_more_and_more_room(directory: Path, write: Callable[[], object], *, largest_bytes: int) -> int:
    """Has something written with no room, a little, and more, until it succeeds; returns how often it failed.

    After each failure everything must be as it was.
    """
    before = content(directory)
    for failures, limit_bytes in enumerate(range(0, 2 * largest_bytes, max(1, largest_bytes // 16))):
        try:
            with files_of_at_most(limit_bytes):
                write()
        except OSError as error:
            if not is_disk_trouble(error):
                raise
            assert content(directory) == before
        else:
            return failures
    raise AssertionError("it failed with room enough")


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> LoraExchange:
    model = make_paper_model(tmp_path_factory.mktemp("model"), size=MODEL_SIZE)
    return LoraExchange(LoraMethod(ranks=[2, RANK]), ServerOptimizer(), model_path=model, model_name=str(model), seed=0)


def delivered(exchange: LoraExchange, directory: Path, start: Path) -> list[Delivered]:
    directory.mkdir()
    shapes = linear_shapes(Path(exchange._model_name), ("q", "v"))
    made = []
    for number in range(2):
        draw = np.random.default_rng(number)
        path = directory / f"{number}.safetensors"
        adapter = {
            module: LowRank(draw.normal(size=(m, RANK)).astype("f4"), draw.normal(size=(RANK, n)).astype("f4"))
            for module, (m, n) in shapes.items()
        }
        write_adapter(path, adapter, precision="fp32")
        made.append(Delivered(f"d{number}", 1, 1.0, RANK, 0, path, start))
    return made


def test_a_global_state_is_merged_whole_or_not_at_all(tmp_path: Path, exchange: LoraExchange) -> None:
    states, undisturbed = tmp_path / "global", tmp_path / "undisturbed"
    largest_bytes = 64 * MODEL_SIZE * RANK
    assert try_with_more_and_more_room(tmp_path, lambda: exchange.begin(states / "0"), largest_bytes=4096)
    updates = delivered(exchange, tmp_path / "updates", states / "0")
    failures = try_with_more_and_more_room(
        tmp_path, lambda: exchange.merge(states / "0", updates, 1, states / "1"), largest_bytes=largest_bytes
    )
    assert failures > 3
    exchange.merge(states / "0", updates, 1, undisturbed)
    assert content(states / "1") == content(undisturbed)


def test_an_adapter_is_exported_whole_or_not_at_all(tmp_path: Path, exchange: LoraExchange) -> None:
    states, adapter = tmp_path / "global", tmp_path / "adapter"
    exchange.begin(states / "0")
    exchange.merge(states / "0", delivered(exchange, tmp_path / "updates", states / "0"), 1, states / "1")
    exchange.export(states / "0", adapter)
    old = content(adapter)
    failures = try_with_more_and_more_room(
        tmp_path, lambda: exchange.export(states / "1", adapter), largest_bytes=64 * MODEL_SIZE * RANK
    )
    assert failures > 3
    assert content(adapter) != old


def test_an_offer_and_a_charge_are_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    record = RoundRecord(device="a", round=1, rank=4, held_rank=0, quantization="fp32", examples=7)
    offer = UpdateOffer(
        run="r",
        round=1,
        sha256="a" * 64,
        size_bytes=6,
        plan=Plan(rank=4, held_rank=0, quantization="fp32"),
        fingerprint="f",
        examples=7,
        record=record,
    )
    state.update("r", 1).write_bytes(b"update")
    assert try_with_more_and_more_room(state.path, lambda: state.save_offer(offer), largest_bytes=1024) > 3
    assert state.offers("r") == [offer]
    state.close()

    ledger = PrivacyLedger(PrivacyLimits(), tmp_path / "privacy.json")
    cost = PrivacyCost(
        steps=SpentSteps(noise_multiplier=1.0, sample_rate=0.1, steps=5), run_epsilon=1.0, device_epsilon=1.0
    )
    assert try_with_more_and_more_room(tmp_path, lambda: ledger.charge("r", cost), largest_bytes=64)
    assert ledger.spent("r") == PrivacyLedger(PrivacyLimits(), tmp_path / "privacy.json").spent("r")
    assert ledger.spent("r") == PrivacySpent(this_run=[cost.steps], owners_delta=PrivacyLimits().delta)


def test_a_blob_goes_on_where_the_disk_was_full(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    sha256 = hashlib.sha256(data).hexdigest()

    def chunks() -> Iterator[Chunk]:
        for lo in range(0, len(data), 10_000):
            yield Chunk(sha256, lo, len(data), data[lo : lo + 10_000])

    blob = IncomingBlob(tmp_path, sha256, len(data))
    with files_of_at_most(45_000), pytest.raises(OSError, match="large") as full:
        list(map(blob.receive, chunks()))
    assert is_disk_trouble(full.value)
    assert blob.received_bytes == 40_000
    with files_of_at_most(0), contextlib.suppress(OSError):  # nor can what is here be remembered
        blob.close()
    blob = IncomingBlob(tmp_path, sha256, len(data))
    for chunk in chunks():
        blob.receive(chunk)
    assert blob.finish().read_bytes() == data


class Deaf:
    """A transport on which nothing comes."""

    async def subscribe(self, topic_filter: str) -> None: ...

    async def unsubscribe(self, topic_filter: str) -> None: ...


async def test_whoever_fetches_hears_of_the_full_disk_and_whoever_reads_goes_on(tmp_path: Path) -> None:
    data = os.urandom(2000)
    part = Part(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), rank_lo=0, rank_hi=4)
    asked: asyncio.Queue[UpMessage] = asyncio.Queue()

    downloads = Downloads(Deaf(), Topics("fleet"), asked.put, tmp_path)  # type: ignore[arg-type]
    chunk = encode_chunk(part.sha256, 0, len(data), data)
    for room in (False, True):
        fetching = asyncio.ensure_future(downloads.fetch("r", [part]))
        await asked.get()
        if not room:
            with files_of_at_most(1000):
                downloads.receive(chunk)
            with pytest.raises(OSError, match="large"):
                await fetching
        else:
            downloads.receive(chunk)
            assert (await fetching).paths == [tmp_path / part.sha256]


def test_what_a_sync_has_failed_on_is_not_claimed_by_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(1000)
    sha256 = hashlib.sha256(data).hexdigest()
    blob = IncomingBlob(tmp_path, sha256, len(data))
    blob.receive(Chunk(sha256, 0, len(data), data))

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            blob.finish()
    with pytest.raises(OSError, match="could not be synced before"):  # the kernel would now say that all is well
        blob.finish()
    with pytest.raises(OSError, match="could not be synced before"):
        blob.close()
    assert IncomingBlob(tmp_path, sha256, len(data)).received_bytes == 0


def test_the_latest_announcement_is_kept_to_though_it_cannot_be_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    latest = LatestTime(tmp_path / "latest")
    latest.advance(10.0)
    with files_of_at_most(0):
        latest.advance(20.0)
    assert latest.unix_s == 20.0
    assert "cannot be kept" in caplog.text
    assert LatestTime(latest.path).unix_s == 10.0
    latest.advance(30.0)
    assert LatestTime(latest.path).unix_s == 30.0


ROUNDS = """
from pathlib import Path
from edgefed.files import replace_file
from edgefed.protocol.records import RoundRecord

class Rounds:
    def run(self, work, report):
        replace_file(Path(work.output), [b"update" * 1000])
        return RoundRecord(device=work.device, round=1, rank=4, held_rank=0, quantization="fp32", examples=1)
"""
START = "import edgefed.agent.worker as worker; worker._ROUNDS = {'lora': 'trial_rounds'}; worker.main()"


def test_a_worker_says_that_it_was_the_disk(tmp_path: Path, work: Work) -> None:
    (tmp_path / "trial_rounds.py").write_text(ROUNDS)
    path = os.pathsep.join((str(tmp_path), *sys.path))
    with files_of_at_most(1000):  # which a process has from whoever starts it
        worker = subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=tmp_path,
        )
    with worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for answer_wanted in (Failed, Finished):
            worker.stdin.write(encode_frame(work))
            worker.stdin.flush()
            answer = decode_answer(worker.stdout.readline())
            assert isinstance(answer, answer_wanted)
            if isinstance(answer, Failed):
                assert answer.kind == "disk"
                assert list(tmp_path.glob("*update*")) == [], "half an update was left"
                _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (hard, hard))
        worker.stdin.close()


def test_room_is_looked_for_without_leaving_anything(tmp_path: Path) -> None:
    assert has_room(tmp_path, 50_000)
    with files_of_at_most(40_000):
        assert not has_room(tmp_path, 50_000)
        assert has_room(tmp_path, 40_000)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        has_room(tmp_path / "nowhere", 1)


def test_only_the_disk_is_the_disks_fault(tmp_path: Path) -> None:
    said = "No space left on device; make room and start the aggregator again"
    with pytest.raises(StoreError, match=said), disk_trouble_told(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(PermissionError), disk_trouble_told(tmp_path):
        raise PermissionError(13, "Permission denied")
    assert not is_lack_of_room(PermissionError(13, "Permission denied"))


def test_what_devices_say_is_kept_once_there_is_room_and_ends_nobody_before(tmp_path: Path) -> None:
    sightings = Sightings(RunDirectory(tmp_path))
    sightings.hear("one")
    with files_of_at_most(16):
        sightings.hear_profile("one", read_profile(tmp_path, quantization="fp32", max_rank=4))
        sightings.save(frozenset, at_once=True)
    assert read_sightings(tmp_path) == {}
    sightings.save(frozenset, at_once=True)
    assert read_sightings(tmp_path).keys() == {"one"}
