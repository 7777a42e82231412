"""The store: real SQLite files, real processes that are killed, a disk that is full."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgefed
from edgefed.coordinator import database
from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.digests import row_digest
from edgefed.coordinator.events import (
    Begin,
    DeviceJoined,
    DeviceLeft,
    DeviceReturned,
    EvaluationReceived,
    Event,
    Merged,
    Stop,
    Tick,
    Update,
    UpdateReceived,
)
from edgefed.coordinator.store import Store, kept_settings
from edgefed.errors import StoreError
from edgefed.protocol.messages.manifest import Manifest, Part
from edgefed.protocol.records import RoundRecord

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(edgefed.__file__).parents[1])}


def update(device: str, round_: int) -> Update:
    return Update(device=device, round=round_, sha256=f"{round_:064x}", examples=3, rank=4, held_rank=2)


def answer(device: str, round_: int, **fields: object) -> Answer:
    given_fields = {"sha256": f"{round_:064x}", "size_bytes": 10, "outcome": "counted", **fields}
    return Answer(device=device, round=round_, **given_fields)  # type: ignore[arg-type]


def merged(round_: int) -> MergedRound:
    return MergedRound(
        round=round_,
        manifest=Manifest(parts=[Part(sha256="a" * 64, size_bytes=5, rank_lo=0, rank_hi=4)]),
        devices={"a": 0.25, "b": 0.75},
        norm=1.5,
        merge_s=0.1,
        broadcast_bytes=100,
        received_bytes=200,
        opened_unix_s=1.0,
        merged_unix_s=2.0,
    )


# --- what goes in comes out -------------------------------------------------------------------------------------------

ids = st.text("abcdefghij-0123456789", min_size=1, max_size=12)
counts = st.integers(0, 2**40)
finite = st.floats(allow_nan=False, allow_infinity=False)
updates = st.builds(
    Update, device=ids, round=counts, sha256=st.text("0123456789abcdef"), examples=counts, rank=counts, held_rank=counts
)
events = st.one_of(
    st.just(Begin()),
    st.just(Tick()),
    st.builds(DeviceJoined, ids),
    st.builds(DeviceLeft, ids),
    st.builds(DeviceReturned, ids),
    st.builds(UpdateReceived, updates, st.none() | finite, counts),
    st.builds(EvaluationReceived, ids, counts, finite, counts),
    st.builds(Merged, counts),
    st.builds(Stop, st.text(st.characters(codec="utf-8"))),
)


@settings(max_examples=15, deadline=None)
@given(entries=st.lists(st.tuples(events, finite), max_size=8))
def test_the_journal_gives_back_every_event_and_time_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[Event, float]]
) -> None:
    directory = tmp_path_factory.mktemp("store")
    store = Store.open(directory, {})
    for event, now_s in entries:
        store.append(event, now_s)
    store.close()
    store = Store.open(directory, {})
    assert list(store.journal()) == entries
    store.close()


def test_answers_are_found_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {})
    record = RoundRecord(device="a", round=1, rank=4, held_rank=0, quantization="nf4", examples=7)
    counted = answer("a", 1, record=record, received_unix_s=5.0)
    rejected = answer("b", 1, outcome="rejected", reason="NaN in it", received_unix_s=6.0)
    store.append(UpdateReceived(update("a", 1)), 0.5, answer=counted)
    store.add_answer(rejected)
    store.append(Merged(1), 1.0)
    store.add_answer(answer("a", 2, outcome="dropped", received_unix_s=7.0))
    assert store.find_answer(1, "a", counted.sha256) == counted
    assert store.find_answer(1, "a", "f" * 64) is None
    assert store.find_answer(1, "c", counted.sha256) is None
    assert store.answers(1) == [counted, rejected]
    assert [(one.device, one.round) for one in store.answers()] == [("a", 1), ("b", 1), ("a", 2)]
    assert store.count_rejected() == 1
    store.close()


def test_an_answer_is_stamped_with_the_time_it_came(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {})
    store.add_answer(answer("a", 1))
    (kept,) = store.answers()
    assert kept.received_unix_s > 1e9
    store.close()


def test_merged_rounds_and_their_events_are_kept_together(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {})
    store.add_merged(Merged(1), 3.0, merged(1))
    store.add_merged(Merged(2), 4.0, merged(2))
    with pytest.raises(StoreError, match="cannot be written"):
        store.add_merged(Merged(2), 5.0, merged(2))
    assert store.merged_rounds() == [merged(1), merged(2)]
    assert list(store.journal()) == [(Merged(1), 3.0), (Merged(2), 4.0)]
    store.close()


def test_an_answer_that_is_there_already_takes_its_event_back_with_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {})
    store.append(UpdateReceived(update("a", 1)), 1.0, answer=answer("a", 1))
    with pytest.raises(StoreError, match="cannot be written"):
        store.append(UpdateReceived(update("a", 1)), 2.0, answer=answer("a", 1))
    assert len(list(store.journal())) == len(store.answers()) == 1
    store.close()


def test_a_run_has_one_id_for_life(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "one", {})
    run = store.run
    store.close()
    again, other = Store.open(tmp_path / "one", {}), Store.open(tmp_path / "two", {})
    assert again.run == run != other.run
    again.close()
    other.close()


def test_any_name_of_a_directory_will_do(tmp_path: Path) -> None:
    directory = tmp_path / "a ?mode=memory&x=%20#y"
    store = Store.open(directory, {})
    store.append(Begin(), 0.0)
    store.close()
    assert (directory / "store.sqlite").stat().st_size > 0


# --- who may open it --------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_with_the_id_of_the_first(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from edgefed.coordinator.store import Store\n"
            "store = Store.open(Path(sys.argv[1]), {}); print('open', flush=True); sys.stdin.read()",
            tmp_path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreError, match=rf"another aggregator \(process {holder.pid}\)"):
            Store.open(tmp_path, {})
        holder.kill()
    Store.open(tmp_path, {}).close()  # a dead process holds nothing


def test_one_that_was_opened_again_elsewhere_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database.fcntl, "flock", lambda *_: None)  # as some file systems do it
    first = Store.open(tmp_path, {})
    first.append(Begin(), 0.0)
    second = Store.open(tmp_path, {})
    with pytest.raises(StoreError, match="another aggregator has opened"):
        first.append(Merged(1), 1.0)
    with pytest.raises(StoreError, match="another aggregator has opened"):
        first.add_answer(answer("a", 1))
    second.append(Merged(1), 2.0)
    assert list(second.journal()) == [(Begin(), 0.0), (Merged(1), 2.0)]
    first.close()
    second.close()


def test_a_closed_store_can_be_opened_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {})
    with pytest.raises(StoreError, match=f"process {os.getpid()}"):
        Store.open(tmp_path, {})
    store.close()
    Store.open(tmp_path, {}).close()


SETTINGS = {"fleet": "barn", "rounds": 3, "training": {"local_steps": 16, "batch_size": 8}, "ranks": [2, 4]}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({**SETTINGS, "rounds": 4}, "rounds was 3 and is 4"),
        ({**SETTINGS, "ranks": [2, 8]}, r"ranks was \[2, 4\] and is \[2, 8\]"),
        ({**SETTINGS, "training": {"local_steps": 8, "batch_size": 8}}, r"\(training.local_steps was 16 and is 8\)"),
        ({**SETTINGS, "seed": 5}, "seed was None and is 5"),
        ({key: value for key, value in SETTINGS.items() if key != "fleet"}, "fleet was 'barn' and is None"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, now: dict[str, object], said: str) -> None:
    Store.open(tmp_path, SETTINGS).close()
    with pytest.raises(StoreError, match=said):
        Store.open(tmp_path, now)
    Store.open(tmp_path, dict(reversed(SETTINGS.items()))).close()  # the refusal let go of it, and order is no matter


# --- files that are not right -----------------------------------------------------------------------------------------


def alter(directory: Path, statement: str) -> None:
    connection = sqlite3.connect(directory / "store.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize("name", ["run", "a run? 100% #1"])
def test_settings_are_read_from_outside(tmp_path: Path, name: str) -> None:
    settings = {"model": {"name": "some/model"}, "rounds": 3}
    store = Store.open(tmp_path / name, settings)
    assert kept_settings(tmp_path / name) == settings, "while an aggregator is at work"
    store.close()
    before = sorted((tmp_path / name).iterdir())
    assert kept_settings(tmp_path / name) == settings
    assert sorted((tmp_path / name).iterdir()) == before


def test_settings_that_cannot_be_read_from_outside(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no store\.sqlite"):
        kept_settings(tmp_path)
    (tmp_path / "store.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"cannot be read: .*not a database"):
        kept_settings(tmp_path)


def test_the_store_of_a_newer_edgefed_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Store.open(tmp_path, {}).close()
    digest = row_digest("schema_version", "3")
    alter(tmp_path, f"UPDATE meta SET value = '3', digest = '{digest}' WHERE key = 'schema_version'")
    alter(tmp_path, "DROP TABLE rounds")
    with pytest.raises(StoreError, match="has version 3, and this edgefed reads version 2"):
        Store.open(tmp_path, {})
    connection = sqlite3.connect(tmp_path / "store.sqlite")
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'rounds'").fetchone() == (0,)
    connection.close()


def test_a_damaged_journal_entry_is_named_after_those_before_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {})
    for now_s in (1.0, 2.0, 3.0):
        store.append(DeviceJoined("a"), now_s)
    alter(tmp_path, 'UPDATE journal SET event = \'{"type": "joined"}\' WHERE sequence = 2')
    journal = store.journal()
    assert next(journal) == (DeviceJoined("a"), 1.0)
    with pytest.raises(StoreError, match="is damaged: journal entry 2 is not what was written"):
        next(journal)
    store.close()


def test_a_damaged_answer_is_a_damaged_store(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {})
    store.add_answer(answer("a", 1))
    alter(tmp_path, "UPDATE answers SET answer = '{'")
    with pytest.raises(StoreError, match="damaged"):
        store.answers()
    with pytest.raises(StoreError, match="damaged"):
        store.find_answer(1, "a", f"{1:064x}")
    store.close()


def test_damaged_settings_are_a_damaged_store(tmp_path: Path) -> None:
    Store.open(tmp_path, {}).close()
    alter(tmp_path, "UPDATE meta SET value = '{' WHERE key = 'identity'")
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path, {})


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(tmp_path, {})


def test_a_run_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match=r"/run cannot be used: File exists$"):
        Store.open(tmp_path / "run", {})


# --- kill -9, and a full disk -----------------------------------------------------------------------------------------

WRITER = """
import resource, sys
from pathlib import Path
from edgefed.coordinator.events import Update, UpdateReceived
from edgefed.coordinator.answers import Answer
from edgefed.coordinator.store import Store
from edgefed.errors import StoreError

store = Store.open(Path(sys.argv[1]), {})
number = len(list(store.journal()))
if sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
print("open", number, flush=True)
while True:
    sha256 = f"{number:064x}"
    update = Update(device="a", round=number, sha256=sha256, examples=1, rank=1, held_rank=1)
    answer = Answer(device="a", round=number, sha256=sha256, size_bytes=1, outcome="counted")
    try:
        store.append(UpdateReceived(update), float(number), answer=answer)
    except StoreError as error:
        print("failed", error, flush=True)
        assert len(list(store.journal())) == len(store.answers()) == number, "half of it was written"
        store.close()
        break
    print("written", number, flush=True)
    number += 1
"""


def check_whole(directory: Path, written: int) -> int:
    """Opens what a writer left; returns how many entries it holds, which are all that it wrote and perhaps one more."""
    store = Store.open(directory, {})
    journal = list(store.journal())
    kept = store.answers()
    store.close()
    rounds = [event.update.round for event, _ in journal if isinstance(event, UpdateReceived)]
    assert rounds == [one.round for one in kept] == list(range(len(journal)))
    assert written <= len(journal) <= written + 1
    return len(journal)


def test_whatever_was_acknowledged_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    written = 0
    for generation in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
        )
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == f"open {written}\n"
            for _ in range(3 * generation + 1):
                assert writer.stdout.readline() == f"written {written}\n"
                written += 1
            writer.send_signal(signal.SIGKILL)  # wherever it is now: before, in or after the next append
            written += writer.stdout.read().count("written")
        written = check_whole(tmp_path, written)


def test_a_full_disk_is_an_error_that_leaves_nothing_half_written(tmp_path: Path) -> None:
    limit_bytes = 150_000
    writer = subprocess.run(
        [sys.executable, "-c", WRITER, tmp_path, str(limit_bytes)],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
        check=True,
    )
    lines = writer.stdout.splitlines()
    assert lines[-1].startswith(f"failed the store in {tmp_path} cannot be written: ")
    assert len(lines) > 3
    assert check_whole(tmp_path, len(lines) - 2) == len(lines) - 2
