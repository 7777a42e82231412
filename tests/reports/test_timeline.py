from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.protocol.records import EvaluationRecord, RoundRecord
from edgefed.reports.timeline import PHASES, add_phases, phase_seconds, spans

seconds = st.floats(0, 1e4)


@st.composite
def records(draw: st.DrawFn) -> RoundRecord:
    return RoundRecord(
        device="d", round=1, rank=4, held_rank=4, quantization="fp32", examples=1, steps=1,
        data_s=draw(seconds), forward_s=draw(seconds), backward_s=draw(seconds), optimizer_s=draw(seconds),
        train_s=draw(seconds), load_s=draw(seconds), download_s=draw(seconds), upload_s=draw(st.none() | seconds),
        evaluation=draw(st.none() | st.builds(EvaluationRecord, loss=st.just(1.0), target_tokens=st.just(1),
                                              examples=st.just(1), evaluate_s=seconds)),
    )  # fmt: skip


@given(records(), st.floats(0, 1e6))
def test_phases_fill_the_window(record: RoundRecord, window_s: float) -> None:
    phases = phase_seconds(record, window_s)
    busy_s = phases.total_s - phases.idle_s
    assert phases.total_s == pytest.approx(max(window_s, busy_s))


@given(st.lists(records(), max_size=4))
def test_phases_add_up(some: list[RoundRecord]) -> None:
    parts = [phase_seconds(record, 100.0) for record in some]
    total = add_phases(parts)
    for phase in PHASES:
        assert total.seconds(phase) == pytest.approx(sum(part.seconds(phase) for part in parts))


@given(records(), st.floats(0, 1e5))
def test_spans_join_and_stay_inside(record: RoundRecord, lasted_s: float) -> None:
    opened = 1_800_000_000.0
    found = spans(record, opened, opened + lasted_s)
    for one, following in pairwise(found):
        assert one.end_unix_s == following.begin_unix_s
    for one in found:
        assert opened <= one.begin_unix_s < one.end_unix_s <= opened + lasted_s
    if found:
        assert found[-1].end_unix_s == opened + lasted_s


def test_the_order_is_that_of_a_round() -> None:
    record = RoundRecord(
        device="d", round=1, rank=4, held_rank=4, quantization="fp32", examples=1, steps=1, forward_s=2.0, train_s=3.0,
        load_s=4.0, download_s=1.0, upload_s=5.0,
    )  # fmt: skip
    assert [(one.phase, one.begin_unix_s, one.end_unix_s) for one in spans(record, 0.0, 100.0)] == [
        ("download", 87.0, 88.0),
        ("load", 88.0, 92.0),
        ("train", 92.0, 95.0),
        ("upload", 95.0, 100.0),
    ]
