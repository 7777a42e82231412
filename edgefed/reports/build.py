"""From what a run kept to its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from edgefed.errors import ConfigError
from edgefed.protocol.records import RoundRecord
from edgefed.reports.report import DeviceReport, DeviceRound, FleetTotals, Report, RoundReport
from edgefed.reports.run_records import REFUSED, Delivery, MergedFacts, RunRecords
from edgefed.reports.timeline import add_phases, phase_seconds, spans
from edgefed.reports.utilization import Figure, measure, summarize

__all__ = ["build_report"]


def build_report(records: RunRecords, *, device: str | None = None) -> Report:
    """Returns the report of a run, or of one device's part in it.

    Raises:
        ConfigError: no such device delivered anything: says which did.
    """
    known = sorted({one.device for one in records.deliveries})
    if device is not None and device not in known:
        there = ", ".join(known) or "none"
        raise ConfigError(f"no device {device!r} delivered anything in run {records.name!r}; those that did: {there}")
    deliveries = [one for one in records.deliveries if device in (None, one.device)]
    windows = _windows(records)
    rows = sorted((_device_round(one, windows[one.round]) for one in deliveries), key=lambda r: (r.round, r.device))
    devices = tuple(_device(name, [row for row in rows if row.device == name]) for name in _names(rows))
    merged = {one.round: one for one in records.rounds}
    last = max(merged, default=0)
    rounds = tuple(
        _round(number, [row for row in rows if row.round == number], merged.get(number), windows[number], last)
        for number in sorted(windows)
    )
    return Report(
        name=records.name,
        run=records.run,
        fleet=records.fleet,
        model=records.model,
        method=records.method,
        totals=_totals(rows, devices, rounds, records.rounds[-1] if records.rounds else None),
        rounds=rounds,
        devices=devices,
        device_rounds=tuple(rows),
    )


class _Window(msgspec.Struct, frozen=True):
    opened_unix_s: float
    closed_unix_s: float


def _windows(records: RunRecords) -> dict[int, _Window]:
    """Returns when each round was open. One that is not merged opened with the end of the round before it."""
    windows = {one.round: _Window(one.opened_unix_s, one.merged_unix_s) for one in records.rounds}
    for number in sorted({one.round for one in records.deliveries} - windows.keys()):
        times = [one.received_unix_s for one in records.deliveries if one.round == number]
        before = windows.get(number - 1)
        windows[number] = _Window(before.closed_unix_s if before else min(times), max(times))
    return windows


def _device_round(delivery: Delivery, window: _Window) -> DeviceRound:
    record = delivery.record
    row = DeviceRound(
        device=delivery.device,
        round=delivery.round,
        outcome=delivery.outcome,
        reason=delivery.reason,
        received_unix_s=delivery.received_unix_s,
        record=record,
    )
    if record is None:
        return row
    window_s = max(window.closed_unix_s, delivery.received_unix_s) - window.opened_unix_s
    return msgspec.structs.replace(
        row,
        use=measure(record),
        phases=phase_seconds(record, window_s),
        spans=spans(record, window.opened_unix_s, delivery.received_unix_s),
    )


def _names(rows: Sequence[DeviceRound]) -> list[str]:
    return sorted({row.device for row in rows})


def _records(rows: Sequence[DeviceRound]) -> list[RoundRecord]:
    return [row.record for row in rows if row.record is not None]


def _device(name: str, rows: Sequence[DeviceRound]) -> DeviceReport:
    records = _records(rows)
    trained = [record for record in records if record.steps]
    latest = next(reversed(trained or records), None)
    losses = [record for record in trained if record.loss_first is not None]
    private = next((record for record in reversed(records) if record.epsilon is not None), None)
    return DeviceReport(
        device=name,
        board=latest.board if latest else None,
        emulated=latest.emulated if latest else None,
        rank=latest.rank if latest else 0,
        held_rank=latest.held_rank if latest else 0,
        quantization=latest.quantization if latest else "",
        micro_batch_size=latest.micro_batch_size if latest else 0,
        gradient_checkpointing=bool(latest and latest.gradient_checkpointing),
        plan_reason=latest.plan_reason if latest else "",
        ranks=tuple(dict.fromkeys(record.rank for record in trained)),
        rounds=len(records),
        counted=sum(row.outcome in ("counted", "late") for row in rows),
        refused=sum(row.outcome in REFUSED for row in rows),
        examples=max((record.examples for record in records), default=0),
        tokens=sum(record.source_tokens + record.target_tokens for record in records),
        download_bytes=sum(record.download_bytes for record in records),
        upload_bytes=sum(record.upload_bytes for record in records),
        loss_first=losses[0].loss_first if losses else None,
        loss_last=losses[-1].loss_last if losses else None,
        epsilon=private.epsilon if private else None,
        delta=private.delta if private else None,
        privacy_assumptions=private.privacy_assumptions if private else "",
        use=summarize(records),
        phases=add_phases([row.phases for row in rows if row.phases is not None]),
    )


def _round(
    number: int, rows: Sequence[DeviceRound], merged: MergedFacts | None, window: _Window, last_merged: int
) -> RoundReport:
    records = _records(rows)
    evaluates = any(row.outcome == "evaluated" for row in rows)
    kind: Literal["train", "evaluate", "open"] = "evaluate" if evaluates else "open"
    return RoundReport(
        round=number,
        kind="train" if merged else kind,
        opened_unix_s=window.opened_unix_s if merged or number > last_merged else None,
        closed_unix_s=window.closed_unix_s if merged or evaluates else None,
        loss=_evaluated_loss(rows),
        training_loss=_training_loss(records),
        counted=sum(row.outcome in ("counted", "evaluated") for row in rows),
        late=sum(row.outcome == "late" for row in rows),
        refused=sum(row.outcome in REFUSED for row in rows),
        download_bytes=sum(record.download_bytes for record in records),
        upload_bytes=sum(record.upload_bytes for record in records),
        broadcast_bytes=merged.broadcast_bytes if merged else None,
        received_bytes=merged.received_bytes if merged else None,
        merge_s=merged.merge_s if merged else None,
        joules=_fleet_joules(records),
    )


def _evaluated_loss(rows: Sequence[DeviceRound]) -> Figure:
    """Returns the mean over target tokens of what the devices found, as the round machine computes it."""
    found = [
        row.record.evaluation
        for row in rows
        if row.outcome in ("counted", "evaluated") and row.record is not None and row.record.evaluation is not None
    ]
    tokens = sum(one.target_tokens for one in found)
    if not tokens:
        return Figure.unknown("no device evaluated in this round")
    return Figure(sum(one.loss * one.target_tokens for one in found) / tokens)


def _training_loss(records: Sequence[RoundRecord]) -> Figure:
    known = [(record.loss_mean, record.steps) for record in records if record.loss_mean is not None and record.steps]
    if not known:
        private = any(record.epsilon is not None for record in records)
        return Figure.unknown("private training does not tell its loss" if private else "nobody trained in this round")
    return Figure(sum(loss * steps for loss, steps in known) / sum(steps for _, steps in known))


def _fleet_joules(records: Sequence[RoundRecord]) -> Figure:
    own = [record for record in records if record.emulated is None]
    if not own:
        shared = "emulated devices share one machine, whose energy cannot be told apart by device"
        return Figure.unknown(shared if records else "no device sent a record")
    energies = [record.use.energy for record in own if record.use]
    known = [energy.joules for energy in energies if energy.joules is not None and energy.agents == 1]
    if not known and any(energy.joules is not None for energy in energies):
        return Figure.unknown("several agents share one machine, whose energy cannot be told apart by device")
    if not known:
        return Figure.unknown(summarize(own).joules.reason)
    left_out = "" if len(known) == len(records) else f"from {len(known)} of {len(records)} records"
    return Figure(sum(known), left_out)


def _totals(
    rows: Sequence[DeviceRound],
    devices: Sequence[DeviceReport],
    rounds: Sequence[RoundReport],
    latest: MergedFacts | None,
) -> FleetTotals:
    times = [one.opened_unix_s for one in rounds if one.opened_unix_s is not None]
    ends = [one.closed_unix_s for one in rounds if one.closed_unix_s] + [row.received_unix_s for row in rows]
    return FleetTotals(
        devices=len(devices),
        emulated=sum(device.emulated is not None for device in devices),
        counted=sum(device.counted for device in devices),
        refused=sum(device.refused for device in devices),
        tokens=sum(device.tokens for device in devices),
        compute_s=sum(device.use.compute_s.value or 0.0 for device in devices),
        joules=_fleet_joules(_records(rows)),
        download_bytes=sum(device.download_bytes for device in devices),
        upload_bytes=sum(device.upload_bytes for device in devices),
        broadcast_bytes=sum(one.broadcast_bytes or 0 for one in rounds),
        wall_s=max(ends) - min(times) if times and ends else None,
        epsilon=latest.epsilon if latest else None,
        delta=latest.delta if latest else None,
        privacy_assumptions=latest.privacy_assumptions if latest else "",
    )
