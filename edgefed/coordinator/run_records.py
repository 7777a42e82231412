"""The records of a run, read from its directory without the aggregator that made it.

They come out of the store and not out of a file of their own: the store is what survives a kill, so a second file
could only repeat it or contradict it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from edgefed.aggregation.exchange import Intervention
from edgefed.coordinator.answers import Answer
from edgefed.coordinator.evaluations import Credibility
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.store import Store
from edgefed.errors import StoreError
from edgefed.files import replace_file
from edgefed.protocol.records import RoundRecord
from edgefed.reports.build import build_report
from edgefed.reports.page import render_page
from edgefed.reports.run_records import Delivery, MergedFacts, RunRecords

__all__ = ["read_run_records", "run_records", "write_report"]

_log = logging.getLogger(__name__)


def read_run_records(run: Path) -> RunRecords:
    """Returns everything a run kept about its devices and rounds.

    Args:
        run: an aggregator's directory; it is only read, and an aggregator may be at work in it.

    Raises:
        StoreError: there is no store, or it cannot be read.
    """
    with Store.reading(run) as store:
        return run_records(store)


def run_records(store: Store) -> RunRecords:
    """Returns everything an open store holds about devices and rounds."""
    settings = store.settings()
    try:
        fleet, model, method = settings["fleet"], settings["model"]["name"], settings["method"]
        described = f"{method['type']}, {method['aggregation']}"
    except (KeyError, TypeError) as error:
        raise StoreError(f"the store in {store.directory} is damaged: its settings have no {error}") from error
    merged_rounds = store.merged_rounds()
    interventions = {(one.device, one.round): one for merged in merged_rounds for one in merged.interventions}
    credibility = Credibility.of_run(settings)
    return RunRecords(
        name=store.directory.absolute().name,
        run=store.run,
        fleet=str(fleet),
        model=str(model),
        method=described,
        rounds=tuple(
            MergedFacts(
                round=merged.round,
                opened_unix_s=merged.opened_unix_s,
                merged_unix_s=merged.merged_unix_s,
                merge_s=merged.merge_s,
                received_bytes=merged.received_bytes,
                broadcast_bytes=merged.broadcast_bytes,
                adapter_rank=merged.manifest.rank,
                epsilon=merged.epsilon,
                delta=merged.delta,
                privacy_assumptions=merged.privacy_assumptions,
            )
            for merged in merged_rounds
        ),
        deliveries=tuple(
            _delivery(answer, interventions.get((answer.device, answer.round)), credibility)
            for answer in store.answers()
        ),
    )


def _delivery(answer: Answer, intervention: Intervention | None, credibility: Credibility) -> Delivery:
    """An answer, and what became of it in its sum where that is another story."""
    delivery = Delivery(
        device=answer.device,
        round=answer.round,
        outcome=answer.outcome,
        reason=answer.reason,
        received_unix_s=answer.received_unix_s,
        record=None if answer.record is None else _believed(answer.device, answer.record, credibility),
    )
    if intervention is None or answer.outcome not in ("counted", "late"):
        return delivery
    outcome = "excluded" if intervention.what == "excluded" else answer.outcome
    return msgspec.structs.replace(delivery, outcome=outcome, reason=intervention.reason)


def _believed(device: str, record: RoundRecord, credibility: Credibility) -> RoundRecord:
    """Returns the record with as much of its evaluation as counts."""
    if record.evaluation is None:
        return record
    loss, tokens = credibility.weigh(device, record.evaluation)
    believed = msgspec.structs.replace(record.evaluation, loss=loss, target_tokens=tokens) if tokens else None
    return msgspec.structs.replace(record, evaluation=believed)


def write_report(store: Store) -> None:
    """Writes the report's page into the run's directory.

    It is written when a federation is over: earlier, `edgefed report` makes one from the same store at any time. A page
    that cannot be written costs a warning, not the federation.
    """
    place = RunDirectory(store.directory).report
    try:
        replace_file(place, [render_page(build_report(run_records(store))).encode()])
    except OSError as error:
        _log.warning("the report %s was not written: %s", place, error)
