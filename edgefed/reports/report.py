"""A run's report as one value: what the page draws, what the CSV lists, and what `--format json` writes.

The JSON is this value as it stands, `Report` at the top. Its evolution rules are those of the protocol
(`edgefed.protocol.tasks`): fields are added, never renamed, and never change their unit; `schema` changes with anything
that a reader must know of. A `Figure` is `{"value": number or null, "reason": text}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from edgefed.errors import ConfigError
from edgefed.protocol.records import RoundRecord
from edgefed.reports.run_records import Delivery, MergedFacts, RunRecords
from edgefed.reports.timeline import PhaseSeconds, Span, add_phases, phase_seconds, spans
from edgefed.reports.utilization import Figure, Utilization, measure, summarize

__all__ = ["SCHEMA", "DeviceReport", "DeviceRound", "FleetTotals", "Report", "RoundReport", "build_report"]

SCHEMA = "edgefed-report/1"


class DeviceRound(msgspec.Struct, frozen=True, kw_only=True):
    """One device in one round.

    Attributes:
        device, round, outcome, reason, received_unix_s: see `Delivery`.
        record: as the device sent it, with `upload_s` as the aggregator saw it; null where it sent none.
        use: what follows from it; null without a record.
        phases: where the time went; null without a record.
        spans: the same on the aggregator's clock.
    """

    device: str
    round: int
    outcome: str
    reason: str
    received_unix_s: float
    record: RoundRecord | None = None
    use: Utilization | None = None
    phases: PhaseSeconds | None = None
    spans: tuple[Span, ...] = ()


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One device over the run.

    Attributes:
        device: its id.
        board: whose data sheet applies; null where none is known.
        emulated: the board that was emulated while planning; null on the real machine.
        rank, held_rank, quantization, micro_batch_size, gradient_checkpointing: of its latest plan.
        plan_reason: why, in words; "" where it did not say.
        ranks: every rank it trained, in order of first use.
        rounds: how many it delivered a record for.
        counted: updates that went into a sum, late ones included.
        refused: updates that were dropped or rejected.
        examples: training examples on it.
        tokens: source and target tokens that it trained on.
        download_bytes, upload_bytes: over all rounds.
        loss_first, loss_last: training loss of its first and of its last step, nats per target token.
        use: over all its rounds.
        phases: over all its rounds.
    """

    device: str
    board: str | None
    emulated: str | None
    rank: int
    held_rank: int
    quantization: str
    micro_batch_size: int
    gradient_checkpointing: bool
    plan_reason: str
    ranks: tuple[int, ...]
    rounds: int
    counted: int
    refused: int
    examples: int
    tokens: int
    download_bytes: int
    upload_bytes: int
    loss_first: float | None
    loss_last: float | None
    use: Utilization
    phases: PhaseSeconds


class RoundReport(msgspec.Struct, frozen=True, kw_only=True):
    """One round over the fleet.

    Attributes:
        round: its number.
        kind: `train`; `evaluate` for the last look at the final adapter; `open` for one that is not merged yet.
        opened_unix_s, closed_unix_s: aggregator's clock; null where not known yet.
        loss: evaluated loss of the adapter that the round started from, mean nats per target token over the devices.
        training_loss: mean over the devices' steps.
        counted, late, refused: updates by what became of them.
        download_bytes, upload_bytes: what the devices took and sent, together.
        broadcast_bytes, received_bytes: what the aggregator sent (once for all) and received; null before the merge.
        merge_s: seconds of the merge; null before it.
        joules: of the devices that are machines of their own.
    """

    round: int
    kind: Literal["train", "evaluate", "open"]
    opened_unix_s: float | None
    closed_unix_s: float | None
    loss: Figure
    training_loss: Figure
    counted: int
    late: int
    refused: int
    download_bytes: int
    upload_bytes: int
    broadcast_bytes: int | None
    received_bytes: int | None
    merge_s: float | None
    joules: Figure


class FleetTotals(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet over the run.

    Attributes:
        devices, emulated: how many, and how many of them emulate another board.
        counted, refused: updates.
        tokens: source and target tokens that were trained on.
        compute_s: seconds of steps, over all devices.
        joules: of the devices that are machines of their own. Emulated devices share one machine and its sensor, and
            what several of them read must not be added up.
        download_bytes, upload_bytes: what the devices took and sent.
        broadcast_bytes: what the aggregator sent, once for all.
        wall_s: from the first round's opening to the last delivery or merge; null for a run that has none.
    """

    devices: int
    emulated: int
    counted: int
    refused: int
    tokens: int
    compute_s: float
    joules: Figure
    download_bytes: int
    upload_bytes: int
    broadcast_bytes: int
    wall_s: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run.

    Attributes:
        schema: names this layout.
        name, run, fleet, model, method: see `RunRecords`.
        totals: over everything.
        rounds: in order.
        devices: by id.
        device_rounds: every delivery, by round and device.
    """

    schema: str = SCHEMA
    name: str
    run: str
    fleet: str
    model: str
    method: str
    totals: FleetTotals
    rounds: tuple[RoundReport, ...]
    devices: tuple[DeviceReport, ...]
    device_rounds: tuple[DeviceRound, ...]


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
        totals=_totals(rows, devices, rounds),
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
        refused=sum(row.outcome in ("dropped", "rejected") for row in rows),
        examples=max((record.examples for record in records), default=0),
        tokens=sum(record.source_tokens + record.target_tokens for record in records),
        download_bytes=sum(record.download_bytes for record in records),
        upload_bytes=sum(record.upload_bytes for record in records),
        loss_first=losses[0].loss_first if losses else None,
        loss_last=losses[-1].loss_last if losses else None,
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
        refused=sum(row.outcome in ("dropped", "rejected") for row in rows),
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
        return Figure.unknown("nobody trained in this round")
    return Figure(sum(loss * steps for loss, steps in known) / sum(steps for _, steps in known))


def _fleet_joules(records: Sequence[RoundRecord]) -> Figure:
    own = [record for record in records if record.emulated is None]
    if not own:
        shared = "emulated devices share one machine, whose energy cannot be told apart by device"
        return Figure.unknown(shared if records else "no device sent a record")
    known = [record.use.energy.joules for record in own if record.use and record.use.energy.joules is not None]
    if not known:
        return Figure.unknown(summarize(own).joules.reason)
    left_out = "" if len(known) == len(records) else f"from {len(known)} of {len(records)} records"
    return Figure(sum(known), left_out)


def _totals(rows: Sequence[DeviceRound], devices: Sequence[DeviceReport], rounds: Sequence[RoundReport]) -> FleetTotals:
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
    )
