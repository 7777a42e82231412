"""A run's report as one value: what the page draws, what the CSV lists, and what `--format json` writes.

The JSON is this value as it stands, `Report` at the top. Its evolution rules are those of the protocol
(`edgefed.protocol.tasks`): fields are added, never renamed, and never change their unit; `schema` changes with anything
that a reader must know of. A `Figure` is `{"value": number or null, "reason": text}`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgefed.protocol.records import RoundRecord
from edgefed.reports.timeline import PhaseSeconds, Span
from edgefed.reports.utilization import Figure, Utilization

__all__ = ["SCHEMA", "DeviceReport", "DeviceRound", "FleetTotals", "Report", "RoundReport"]

SCHEMA = "edgefed-report/1"


class DeviceRound(msgspec.Struct, frozen=True, kw_only=True):
    """One device in one round.

    Attributes:
        device, round, outcome, reason, received_unix_s: see `Delivery`.
        record: as the device sent it, with `upload_s` as the aggregator saw it and as much of its evaluation as counts;
            null where it sent none.
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
        refused: updates that were dropped, rejected or excluded.
        examples: training examples on it.
        tokens: source and target tokens that it trained on.
        download_bytes, upload_bytes: over all rounds.
        loss_first, loss_last: training loss of its first and of its last step, nats per target token.
        epsilon, delta: what its examples' privacy has cost over the run; null where nothing was private.
        privacy_assumptions: what ε stands on, in words.
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
    epsilon: float | None
    delta: float | None
    privacy_assumptions: str
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
            what several of them read must not be added up; nor what several agents on one machine read.
        download_bytes, upload_bytes: what the devices took and sent.
        broadcast_bytes: what the aggregator sent, once for all.
        wall_s: from the first round's opening to the last delivery or merge; null for a run that has none.
        epsilon, delta: what the run's sums have cost of the devices' privacy; null where no noise was added.
        privacy_assumptions: what ε stands on, in words.
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
    epsilon: float | None = None
    delta: float | None = None
    privacy_assumptions: str = ""


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
