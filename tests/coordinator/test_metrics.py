from __future__ import annotations

import pytest

from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.metrics import MetricsFeed
from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.messages.retained import AggregatorState
from edgefed.protocol.records import RoundRecord
from edgefed.reports.snapshot import MAX_DEVICES, FleetSample, Snapshot

FLEET = FleetSample(fleet="f", run="0", model="m", method="lora, delta")


def answer(device: str, round_: int = 1, outcome: str = "counted") -> Answer:
    record = RoundRecord(
        device=device, round=round_, rank=4, held_rank=4, quantization="fp32", examples=1, steps=2, forward_s=1.0,
        source_tokens=10, target_tokens=5, upload_bytes=100, upload_s=0.5,
    )  # fmt: skip
    return Answer(round=round_, device=device, sha256="", size_bytes=1, outcome=outcome, record=record)  # type: ignore[arg-type]


def merged(round_: int) -> MergedRound:
    return MergedRound(
        round=round_, manifest=Manifest(), devices={}, norm=1.0, merge_s=0.5, broadcast_bytes=1, received_bytes=1,
        opened_unix_s=100.0, merged_unix_s=110.0,
    )  # fmt: skip


def test_what_is_kept_and_shown_is_published() -> None:
    seen: list[Snapshot] = []
    feed = MetricsFeed(FLEET, seen.append)
    feed.remember([merged(1), answer("a"), answer("b", outcome="rejected")])
    feed.keep(answer("a", 2))
    feed.keep(merged(2))
    feed.show(
        AggregatorState(
            status="online", instance="", phase="training", round=3, rounds=5, received_bytes=7, broadcast_bytes=5
        )
    )
    last = seen[-1]
    assert len(seen) == 4
    assert last.outcomes == {"counted": 2, "rejected": 1}
    assert (last.merged_rounds, last.rounds_s, last.merges_s, last.last_round_s) == (2, 20.0, 1.0, 10.0)
    assert last.devices["a"].steps == 4
    assert last.devices["a"].use is not None
    assert last.devices["a"].use.tokens_per_s.value == pytest.approx(15.0)
    assert (last.fleet.fleet, last.fleet.round) == ("f", 3)
    assert last.fleet.received_bytes == 6, "of this process: another one merged the first round"
    assert seen[0].devices["a"].steps == 2, "what was published before has not changed"


def test_a_large_fleet_keeps_those_heard_of_last() -> None:
    seen: list[Snapshot] = []
    feed = MetricsFeed(FLEET, seen.append)
    feed.remember(answer(f"d{number}") for number in range(MAX_DEVICES + 3))
    feed.keep(answer("d5", 2))
    feed.keep(answer("d0", 2))
    last = seen[-1]
    assert len(last.devices) == MAX_DEVICES
    assert {"d0", "d5"} <= last.devices.keys()
    assert "d1" not in last.devices
    assert last.omitted_devices == 3
