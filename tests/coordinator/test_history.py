"""The history file: what the store holds, kept up to date without making all of it anew."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import closing
from pathlib import Path

from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.events import Merged
from edgefed.coordinator.history import extend_history, write_history
from edgefed.coordinator.round_state import State
from edgefed.coordinator.store import Store
from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.records import RoundRecord

STATE = State(losses=tuple((round_, 1.0 / (1 + round_)) for round_ in range(40)))


def merge(store: Store, round_: int, devices: int = 2, late: str = "") -> None:
    """Keeps a round's answers and record; of the device that is late, only an older update is in the sum."""
    names = [f"d-{i}" for i in range(devices)]
    for name in names:
        if name == late:
            continue
        record = RoundRecord(
            device=name, round=round_, rank=2, held_rank=2, quantization="fp32", examples=3, plan_reason="why " * 200
        )
        store.add_answer(
            Answer(device=name, round=round_, sha256=f"{round_:064x}", size_bytes=9, outcome="counted", record=record)
        )
    one = MergedRound(
        round=round_,
        manifest=Manifest(),
        devices=dict.fromkeys(names, 1 / devices),
        norm=1.0,
        merge_s=0.1,
        broadcast_bytes=1,
        received_bytes=2,
        opened_unix_s=float(round_),
        merged_unix_s=round_ + 0.5,
    )
    store.add_merged(Merged(round_), 0.0, one)


def test_a_file_that_grew_with_every_round_is_what_is_written_at_the_end(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "run", {})) as store:
        for round_ in range(1, 21):
            merge(store, round_)
            if round_ != 7:  # as when the aggregator was killed between a merge and its line
                extend_history(tmp_path / "grown", store, STATE)
            if round_ == 19:
                late = Answer(device="late", round=15, sha256="f" * 64, size_bytes=9, outcome="dropped", reason="late")
                store.add_answer(late)
        write_history(tmp_path / "whole", store, STATE)
        assert (tmp_path / "grown").read_bytes() == (tmp_path / "whole").read_bytes()
        lines = [json.loads(line) for line in (tmp_path / "whole").read_text().splitlines()]
        assert [line["round"] for line in lines] == list(range(1, 21))
        assert [line["loss_before"] for line in lines[:2]] == [1.0, 0.5]
        assert lines[14]["refused"] == [{"device": "late", "outcome": "dropped", "reason": "late"}]


def test_a_long_history_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    def peak_bytes(store: Store) -> int:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        write_history(tmp_path / "history", store, STATE)
        return tracemalloc.get_traced_memory()[1] - before

    with closing(Store.open(tmp_path / "run", {})) as store:
        merge(store, 1, devices=20)
        write_history(tmp_path / "history", store, STATE)
        tracemalloc.start()
        try:
            short = peak_bytes(store)
            for round_ in range(2, 30):
                merge(store, round_, devices=20)
            assert peak_bytes(store) < 3 * short
            assert (tmp_path / "history").stat().st_size > 3 * short
        finally:
            tracemalloc.stop()


def test_a_device_that_is_in_a_sum_with_an_older_update_has_no_record_of_a_newer_one_there(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "run", {})) as store:
        merge(store, 1)
        own = RoundRecord(device="d-2", round=2, rank=2, held_rank=2, quantization="fp32", examples=3)
        store.add_answer(Answer(device="d-2", round=2, sha256="e" * 64, size_bytes=9, outcome="late", record=own))
        merge(store, 2, devices=3, late="d-2")
        write_history(tmp_path / "history", store, STATE)
    devices = json.loads((tmp_path / "history").read_text().splitlines()[1])["devices"]
    assert devices["d-2"] == {"weight": 1 / 3, "record": None}
    assert devices["d-1"]["record"]["round"] == 2
