"""What is told of updates that did not count as they came: live, after a restart, in the report and in the status."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgefed.aggregation.exchange import Intervention
from edgefed.cli.fleet_view import describe_aggregator, describe_refusals
from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.events import GivenUp, Merged
from edgefed.coordinator.refusals import Refusals
from edgefed.coordinator.run_records import run_records
from edgefed.coordinator.store import Store
from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.messages.retained import AggregatorState
from edgefed.protocol.topics import Topics
from edgefed.reports.build import build_report
from edgefed.reports.page import render_page
from edgefed.transport.base import Distrusted

SETTINGS = {"fleet": "f", "model": {"name": "m"}, "method": {"type": "lora", "aggregation": "delta"}}


def answer(device: str, round_: int, outcome: str, *, reason: str = "", unix_s: float) -> Answer:
    return Answer(
        round=round_,
        device=device,
        sha256=f"{device}{round_}",
        size_bytes=1,
        outcome=outcome,  # type: ignore[arg-type]
        reason=reason,
        received_unix_s=unix_s,
    )


def merged(round_: int, *interventions: Intervention, unix_s: float) -> MergedRound:
    return MergedRound(
        round=round_,
        manifest=Manifest(),
        devices={"good": 1.0},
        norm=1.0,
        merge_s=0.1,
        broadcast_bytes=0,
        received_bytes=0,
        opened_unix_s=unix_s - 10,
        merged_unix_s=unix_s,
        interventions=interventions,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two rounds: one update was rejected, one excluded from its sum, one clipped in it."""
    store = Store.open(tmp_path, SETTINGS)
    for round_, device in ((1, "good"), (1, "far"), (2, "long")):
        store.add_answer(answer(device, round_, "counted", unix_s=100.0 * round_))
    store.add_answer(answer("broken", 2, "rejected", reason="NaN in it", unix_s=205.0))
    excluded = Intervention(device="far", round=1, what="excluded", reason="multi_krum: it lies farther")
    clipped = Intervention(device="long", round=2, what="clipped", reason="its change has norm 9 and was clipped to 1")
    store.add_merged(Merged(1), 1.0, merged(1, excluded, unix_s=110.0))
    store.add_merged(Merged(2), 2.0, merged(2, clipped, unix_s=210.0))
    yield store
    store.close()


def test_a_restarted_aggregator_knows_them_in_the_order_in_which_they_came(store: Store) -> None:
    refusals = Refusals(store)
    assert refusals.totals == {"rejected": 1, "excluded": 1, "clipped": 1}
    assert [(one.device, one.what) for one in refusals.latest] == [
        ("far", "excluded"),
        ("broken", "rejected"),
        ("long", "clipped"),
    ]


def test_only_the_latest_few_are_told_and_all_are_counted(store: Store) -> None:
    refusals = Refusals(store)
    for at in range(7):
        refusals.take_answer(answer(f"d{at}", 3, "rejected", reason="x" * 5000, unix_s=300.0 + at))
    refusals.take_silenced("loud", 3, 600)
    assert refusals.totals["rejected"] == 8
    assert [one.device for one in refusals.latest] == ["d3", "d4", "d5", "d6", "loud"]
    assert len(refusals.latest[0].reason) == 300
    assert refusals.latest[-1].reason == "it sends more than 600 messages a minute"
    assert Refusals(store).totals["rejected"] == 1  # of these, nothing was kept


def test_messages_that_were_not_trusted_are_counted_and_drive_nothing_else_out(store: Store) -> None:
    refusals, topics = Refusals(store), Topics("f")
    for _ in range(9):
        for topic in (topics.device("victim", "state"), topics.aggregator_state):
            refusals.take_distrusted(topics, Distrusted(topic, "it is not signed", outdated=False), 2)
    refusals.take_distrusted(topics, Distrusted(topics.device("victim", "profile"), "a later one", outdated=True), 2)
    assert refusals.totals == {"rejected": 1, "excluded": 1, "clipped": 1, "distrusted": 18, "outdated": 1}
    assert [(one.device, one.what, one.reason) for one in refusals.latest[-3:]] == [
        ("victim", "distrusted", "on state: it is not signed"),
        ("the aggregator", "distrusted", "on state: it is not signed"),
        ("victim", "outdated", "on profile: a later one"),
    ]
    assert {one.device for one in refusals.latest} >= {"broken", "long"}
    state = AggregatorState(status="online", instance="i", **refusals.totals, refusals=refusals.latest)
    assert "18 messages not trusted · 1 message out of date" in describe_aggregator(state)


def test_the_status_has_the_numbers_and_the_reasons(store: Store) -> None:
    refusals = Refusals(store)
    state = AggregatorState(status="online", instance="i", **refusals.totals, refusals=refusals.latest)
    assert "1 update rejected · 1 update excluded · 1 update clipped" in describe_aggregator(state)
    assert describe_refusals(state)[0] == ("1970-01-01 00:01:50Z  far, round 1: excluded: multi_krum: it lies farther")


def test_a_round_that_was_given_up_is_told_of_now_and_after_a_restart(store: Store) -> None:
    reason = "the adapter has diverged: why"
    lost = Intervention(device="good", round=3, what="excluded", reason=f"round 3 was given up: {reason}")
    record = msgspec.structs.replace(merged(3, lost, unix_s=310.0), devices={}, copied=1, given_up_because=reason)
    live = Refusals(store)
    assert (live.given_up, live.gave_up) == (0, "")
    live.take_merged(record)
    store.add_answer(answer("good", 3, "counted", unix_s=300.0))
    store.add_merged(GivenUp(3), 3.0, record)
    for refusals in (live, Refusals(store)):
        assert (refusals.given_up, refusals.gave_up) == (1, f"round 3: {reason}")
        assert (refusals.latest[-1].device, refusals.latest[-1].what) == ("good", "excluded")
    state = AggregatorState(status="online", instance="i", given_up=live.given_up, gave_up=live.gave_up)
    assert describe_aggregator(state).endswith("1 round given up, the latest round 3: the adapter has diverged: why")
    outcomes = {(one.device, one.round): one.outcome for one in run_records(store).deliveries}
    assert outcomes["good", 3] == "excluded", "the report counts it as what became of it"
    assert render_page(build_report(run_records(store)))


def test_the_report_says_what_did_not_count_and_why(store: Store) -> None:
    records = run_records(store)
    found = {one.device: (one.outcome, one.reason) for one in records.deliveries}
    assert found == {
        "good": ("counted", ""),
        "far": ("excluded", "multi_krum: it lies farther"),
        "long": ("counted", "its change has norm 9 and was clipped to 1"),
        "broken": ("rejected", "NaN in it"),
    }
    report = build_report(records)
    assert {device.device: device.refused for device in report.devices} == {"good": 0, "far": 1, "long": 0, "broken": 1}
    page = render_page(report)
    for reason in ("multi_krum: it lies farther", "clipped to 1", "NaN in it"):
        assert reason in page
