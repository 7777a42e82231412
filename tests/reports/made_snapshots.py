"""A snapshot out of a made run, as an aggregator would publish it."""

from __future__ import annotations

from edgefed.reports.snapshot import DeviceSample, FleetSample, Snapshot, with_record
from tests.reports.made_runs import make_run


def make_snapshot(*, known: bool = True, hostile: bool = False) -> Snapshot:
    """Returns the snapshot at the end of a run of six devices."""
    run = make_run(known=known, hostile=hostile)
    devices: dict[str, DeviceSample] = {}
    outcomes: dict[str, int] = {}
    for one in run.deliveries:
        outcomes[one.outcome] = outcomes.get(one.outcome, 0) + 1
        if one.record is not None:
            devices[one.device] = with_record(devices.get(one.device, DeviceSample()), one.record)
    fleet = FleetSample(
        fleet=run.fleet, run=run.run, model=run.model, method=run.method, phase="training", round=5, rounds=5, joined=1,
        accepted=6, delivered=2, quorum=4, last_loss=1.5, best_loss=1.4, received_bytes=12345, broadcast_bytes=678,
    )  # fmt: skip
    return Snapshot(
        fleet=fleet,
        outcomes=outcomes,
        merged_rounds=5,
        rounds_s=230.0,
        merges_s=1.2,
        last_round_s=46.0,
        devices=devices,
        omitted_devices=3,
    )
