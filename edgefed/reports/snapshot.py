"""What the metrics show at one moment: a value that the aggregator publishes and the exporter's threads read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from edgefed.protocol.records import RoundRecord
from edgefed.reports.timeline import PhaseSeconds, add_phases, phase_seconds
from edgefed.reports.utilization import Utilization, measure

__all__ = ["MAX_DEVICES", "DeviceSample", "FleetSample", "Snapshot", "with_record"]

MAX_DEVICES = 512
"""Devices with time series of their own: those heard of last, so that a large fleet does not flood Prometheus."""


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """One device: totals since the run began, and the measures of its latest round of training.

    Attributes:
        latest: the record of the latest round in which it trained.
        use: what follows from that.
        rounds: records it sent.
        steps, source_tokens, target_tokens, download_bytes, upload_bytes, joules, throttled_s: totals.
        phases: total seconds; idle time is not in it, since a record does not tell.
    """

    latest: RoundRecord | None = None
    use: Utilization | None = None
    rounds: int = 0
    steps: int = 0
    source_tokens: int = 0
    target_tokens: int = 0
    download_bytes: int = 0
    upload_bytes: int = 0
    joules: float | None = None
    throttled_s: float | None = None
    phases: PhaseSeconds = field(default_factory=PhaseSeconds)


@dataclass(frozen=True, slots=True)
class FleetSample:
    """The federation as the aggregator shows it.

    Attributes:
        fleet, run, model, method: whose metrics these are.
        phase: of the round machine.
        round, rounds: the open round, and how many are wanted.
        joined, accepted, delivered, quorum: of the open round.
        last_loss, best_loss: evaluated, nats per target token; null before any evaluation.
        received_bytes, broadcast_bytes: since the aggregator was started.
    """

    fleet: str
    run: str
    model: str
    method: str
    phase: str = "gathering"
    round: int = 0
    rounds: int = 0
    joined: int = 0
    accepted: int = 0
    delivered: int = 0
    quorum: int = 0
    last_loss: float | None = None
    best_loss: float | None = None
    received_bytes: int = 0
    broadcast_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is exported.

    Attributes:
        fleet: the federation.
        outcomes: updates by what became of them, since the run began.
        merged_rounds: since the run began.
        rounds_s, merges_s: seconds of all merged rounds and of their merges.
        last_round_s: seconds of the latest merged round; null before it.
        devices: by id, at most `MAX_DEVICES`.
        omitted_devices: how many others sent records.
    """

    fleet: FleetSample
    outcomes: Mapping[str, int] = field(default_factory=dict)
    merged_rounds: int = 0
    rounds_s: float = 0.0
    merges_s: float = 0.0
    last_round_s: float | None = None
    devices: Mapping[str, DeviceSample] = field(default_factory=dict)
    omitted_devices: int = 0


def with_record(sample: DeviceSample, record: RoundRecord) -> DeviceSample:
    """Returns a device's sample after one more record."""
    energy_j = record.use.energy.joules if record.use else None
    throttled_s = record.use.throttled_s if record.use else None
    return DeviceSample(
        latest=record if record.steps else sample.latest,
        use=measure(record) if record.steps else sample.use,
        rounds=sample.rounds + 1,
        steps=sample.steps + record.steps,
        source_tokens=sample.source_tokens + record.source_tokens,
        target_tokens=sample.target_tokens + record.target_tokens,
        download_bytes=sample.download_bytes + record.download_bytes,
        upload_bytes=sample.upload_bytes + record.upload_bytes,
        joules=_plus(sample.joules, energy_j),
        throttled_s=_plus(sample.throttled_s, throttled_s),
        phases=add_phases([sample.phases, msgspec.structs.replace(phase_seconds(record, 0.0), idle_s=0.0)]),
    )


def _plus(total: float | None, more: float | None) -> float | None:
    return total if more is None else (total or 0.0) + more
