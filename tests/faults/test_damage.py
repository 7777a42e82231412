"""A real run, with bytes flipped and files cut or lost: what is damaged is seen, and what is whole is gone on from."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.config import read_federation
from edgefed.coordinator.digests import directory_digest
from edgefed.coordinator.events import GivenUp, Recovered
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.passport import read_passport
from edgefed.coordinator.recovery import examine, recover
from edgefed.coordinator.round_state import State
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.soundness import check_account, check_files
from edgefed.coordinator.store import Store
from edgefed.errors import StoreError
from tests.federation.stand_in import federation_toml, make_paper_model
from tests.federation.test_aggregator import Run, devices
from tools.mosquitto import RunningMosquitto, running_mosquitto

pytestmark = pytest.mark.broker

MEMORY = Path("/dev/shm")
MERGED, DEVICES, PATIENCE_S = 2, 3, 60.0
HARMLESS = ("store.lock", "store.mark", "store.sqlite-shm", "run.json", "history.jsonl")
"""Files that can be lost without anything being lost: what they say is elsewhere too."""


@dataclass(frozen=True)
class Kept:
    """What a run knows, as an aggregator reads it."""

    journal: list[object]
    answers: list[object]
    merged: list[object]
    state: State
    states: dict[int, str]


async def play_until_killed(directory: Path, broker: RunningMosquitto) -> Run:
    """Kills the aggregator in round 3, once an update of that round is in."""
    model = make_paper_model(directory / "model")
    toml = federation_toml(model, directory / "run", broker.port, selection=f"expected_devices = {DEVICES}\n")
    run = Run(directory, toml)
    fleet = devices(model, directory, broker.port, DEVICES)
    run.start()
    try:
        taking_part = [asyncio.ensure_future(device.take_part()) for device in fleet[1:]]
        first = asyncio.ensure_future(fleet[0].take_part(on_accepted=lambda announced: stop_at(announced.round)))
        over = asyncio.Event()

        def stop_at(round_: int) -> None:
            if round_ == MERGED + 1:
                first.cancel()
                over.set()

        await asyncio.wait_for(over.wait(), PATIENCE_S)
        for _ in range(int(PATIENCE_S / 0.05)):
            if all(word.round == MERGED + 1 for device in fleet[1:] for word in device.acknowledged[-1:]):
                break
            await asyncio.sleep(0.05)
        for task in taking_part:
            task.cancel()
        await asyncio.gather(first, *taking_part, return_exceptions=True)
        assert run.process is not None
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
    finally:
        run.end()
    return run


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("pristine")
    with running_mosquitto() as broker:
        return asyncio.run(play_until_killed(directory, broker))


def look(run: Run, directory: Path) -> Kept:
    """Does what an aggregator does with its directory before it does anything else. Raises StoreError as it does."""
    passport = read_passport(run.directory)
    assert passport is not None
    store = Store.open(directory, passport.identity)
    try:
        state = Ledger(store, read_federation(run.config).rules).state
        check_account(store)
        check_files(store, RunDirectory(directory), state)
        numbers = range(store.last_round + 1)
        return Kept(
            journal=list(store.journal()),
            answers=list(store.answers()),
            merged=list(store.merged_rounds()),
            state=state,
            states={number: store.state_digest(number) for number in numbers},
        )
    finally:
        store.close()


@contextlib.contextmanager
def a_copy(run: Run, *, log: bool) -> Iterator[Path]:
    """Gives a copy of the run; with SQLite's log as a kill has left it, or with everything in the store's file."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        directory = Path(scratch, "run")
        shutil.copytree(run.directory, directory)
        if not log:
            with contextlib.closing(sqlite3.connect(directory / "store.sqlite")) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        yield directory


def files_of(directory: Path) -> list[Path]:
    kept = ("store.*", "run.json", "history.jsonl", "updates/*", "global/*", "global/*/*")
    return sorted(path for pattern in kept for path in directory.glob(pattern) if path.is_file())


def damage(draw: st.DataObject, path: Path) -> str:
    """Does one of the things that happen to files, and says what."""
    data = bytearray(path.read_bytes())
    at = draw.draw(st.integers(0, max(0, len(data) - 1)), label="at")
    kind = draw.draw(st.sampled_from(["flip", "flip", "flip", "zero", "cut", "remove"]), label="kind")
    if kind == "remove":
        path.unlink()
        return kind
    if kind == "flip" and data:
        data[at] ^= 1 << draw.draw(st.integers(0, 7), label="bit")
    elif kind == "zero":
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    else:
        del data[at:]
    path.write_bytes(data)
    return f"{kind} at {at}"


@pytest.fixture(scope="module")
def before(pristine: Run) -> Kept:
    with a_copy(pristine, log=True) as directory:
        return look(pristine, directory)


def test_a_run_that_was_killed_is_whole(pristine: Run) -> None:
    with a_copy(pristine, log=True) as directory:
        assert (directory / "store.sqlite-wal").stat().st_size > 0
        kept = look(pristine, directory)
        assert kept.state.round == MERGED + 1
        assert len(kept.state.updates) == DEVICES - 1
        found = examine(directory)
    assert found.troubles == ()
    assert found.whole == (0, 1, 2)


@given(draw=st.data(), log=st.booleans())
@settings(max_examples=120)
def test_no_damage_goes_unseen_and_what_is_whole_is_gone_on_from(
    pristine: Run, before: Kept, draw: st.DataObject, log: bool
) -> None:
    with a_copy(pristine, log=log) as directory:
        store, others = directory / "store.sqlite", files_of(directory)
        log_file = [store.with_name("store.sqlite-wal")] if log else []
        path = draw.draw(st.sampled_from([store, *log_file]) | st.sampled_from(others), label="file")
        what = f"{path.relative_to(directory)}: {damage(draw, path)}"
        refused = ""
        try:
            after = look(pristine, directory)
        except StoreError as error:
            refused = str(error)
        if not refused:
            assert after == before, f"{what}: it goes on with something else than was written"
            return
        assert "is damaged: " in refused, f"{what}: {refused}"
        assert path.name not in HARMLESS, f"{what}: {refused}"
        check_recovery(pristine, before, directory, what)


def check_recovery(pristine: Run, before: Kept, directory: Path, what: str) -> None:
    found = examine(directory)
    assert found.troubles, what
    done = recover(directory)
    assert done.of == found.whole[-1], what
    assert done.given_up == MERGED + 1, what
    after = look(pristine, directory)
    assert (after.state.phase, after.state.round, after.state.updates) == ("gathering", MERGED + 2, ()), what
    assert after.states[done.given_up] == before.states[done.of], f"{what}: another adapter than any that was"
    assert all(answer in before.answers for answer in after.answers), what
    assert all(one in before.merged for one in after.merged[:-1]), what
    assert examine(directory).troubles == (), what
    assert list((directory / "damaged-1").iterdir()) or what == "store.sqlite: remove", "what was damaged is kept"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_log_whose_end_is_lost_is_not_taken_for_one_that_never_had_it(pristine: Run, share: float) -> None:
    with a_copy(pristine, log=True) as directory:
        log = directory / "store.sqlite-wal"
        data = log.read_bytes()
        log.write_bytes(data[: int(share * len(data))])
        with pytest.raises(
            StoreError, match=r"is damaged: it has lost its last \d+ of \d+ writes|no such table|run.json"
        ):
            look(pristine, directory)


@pytest.mark.parametrize("name", HARMLESS)
def test_some_files_can_be_lost(pristine: Run, before: Kept, name: str) -> None:
    with a_copy(pristine, log=True) as directory:
        (directory / name).unlink(missing_ok=True)
        assert look(pristine, directory).state == before.state


def test_a_store_that_is_gone_altogether_is_made_again_from_what_lies_beside_it(pristine: Run) -> None:
    with a_copy(pristine, log=False) as directory:
        (directory / "store.sqlite").unlink()
        with pytest.raises(StoreError, match=r"is damaged: store\.sqlite is gone; `edgefed store check"):
            look(pristine, directory)
        done = recover(directory)
        assert (done.of, done.given_up) == (2, 3)
        after = look(pristine, directory)
        assert [one.round for one in after.merged] == [1, 2, 3]  # type: ignore[attr-defined]
        assert [type(event) for event, _ in after.journal] == [Recovered]  # type: ignore[misc]


def test_an_operator_may_go_further_back(pristine: Run) -> None:
    with a_copy(pristine, log=True) as directory:
        with pytest.raises(StoreError, match=r"the adapter after round 7 is not whole, or not there; .* 0, 1, 2$"):
            recover(directory, 7)
        digest = directory_digest(directory / "global" / "1")
        done = recover(directory, 1)
        assert (done.of, done.given_up, done.unused) == (1, 3, DEVICES - 1)
        assert directory_digest(directory / "global" / "3") == digest
        assert (directory / "damaged-1" / "store.sqlite").exists()
        again = recover(directory, 3)
        assert (again.of, again.given_up, again.aside.name) == (3, 4, "damaged-2")


def test_too_little_to_go_on_from_is_said(pristine: Run, tmp_path: Path) -> None:
    with a_copy(pristine, log=False) as directory:
        (directory / "store.sqlite").write_bytes(b"")
        (directory / "run.json").unlink()
        with pytest.raises(StoreError, match=r"neither the store .* nor run.json says what the run was begun with"):
            recover(directory)
    with a_copy(pristine, log=False) as directory:
        shutil.rmtree(directory / "global")
        with pytest.raises(StoreError, match=r"no adapter in .* is whole: begin another federation"):
            recover(directory)
    with pytest.raises(StoreError, match="it is no run directory"):
        examine(tmp_path)


def test_a_run_at_work_and_one_of_another_version_are_left_alone(pristine: Run) -> None:
    passport = read_passport(pristine.directory)
    assert passport is not None
    with a_copy(pristine, log=False) as directory:
        store = Store.open(directory, passport.identity)
        with pytest.raises(
            StoreError,
            match=rf"an aggregator \(process {os.getpid()}\) is at work in .*must stand still for this: end it first",
        ):
            examine(directory)
        store.close()
        with contextlib.closing(sqlite3.connect(directory / "store.sqlite")) as connection:
            connection.execute("ALTER TABLE meta DROP COLUMN digest")
            connection.commit()
        with pytest.raises(StoreError, match="has version 1, and this edgefed reads version 2"):
            recover(directory)


def edgefed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgefed", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_federation_goes_on_after_damage(tmp_path: Path) -> None:
    """The whole way: killed, damaged, refused, looked at, recovered, started again, and run to its end."""
    with running_mosquitto() as broker:
        run = asyncio.run(play_until_killed(tmp_path, broker))
        part = next(
            path for path in (run.directory / "global" / str(MERGED)).iterdir() if path.suffix == ".safetensors"
        )
        data = bytearray(part.read_bytes())
        data[-10] ^= 1
        part.write_bytes(data)
        try:
            assert run.start().wait(PATIENCE_S) == StoreError.exit_code
            said = run.log.read_text()
            assert f"is damaged: a file in {run.directory}/global/{MERGED} is not what was written; `edgefed" in said
            assert "Traceback" not in said

            checked = edgefed("store", "check", str(run.directory))
            assert checked.returncode == StoreError.exit_code
            assert f"rounds over: {MERGED}; whole adapters are kept of rounds: 0, 1\n" in checked.stdout
            assert "damaged: a file in" in checked.stdout
            assert "goes on from the adapter after round 1" in checked.stderr
            recovered = edgefed("store", "recover", str(run.directory))
            assert recovered.returncode == 0, recovered.stderr
            assert "goes on from the adapter after round 1, in round 4" in recovered.stdout
            assert "2 updates that had been accepted are in no sum" in recovered.stdout
            checked = edgefed("store", "check", str(run.directory))
            assert (checked.returncode, checked.stderr) == (0, "")
            assert "all is as it was written" in checked.stdout

            fleet = devices(tmp_path / "model", tmp_path, broker.port, DEVICES)
            run.config.write_text(run.config.read_text().replace("rounds = 3", "rounds = 5"))
            run.start()

            async def to_the_end() -> None:
                await asyncio.wait_for(asyncio.gather(*(device.take_part() for device in fleet)), PATIENCE_S)

            asyncio.run(to_the_end())
            assert run.process is not None
            assert run.process.wait(PATIENCE_S) == 0, run.log.read_text()
        finally:
            run.end()
    lines = run.history()
    assert [(line["round"], line.get("copied")) for line in lines] == [
        (1, None), (2, None), (3, 1), (4, None), (5, None), (6, None),
    ]  # fmt: skip
    with Store.reading(run.directory) as store:
        assert not [event for event, _ in store.journal() if isinstance(event, GivenUp)]
