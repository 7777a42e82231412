"""From what the aggregator keeps and shows to the snapshot that its metrics are made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.run_records import run_records
from edgefed.coordinator.store import Store
from edgefed.protocol.messages.retained import AggregatorState
from edgefed.reports.snapshot import MAX_DEVICES, DeviceSample, FleetSample, Snapshot, with_record

__all__ = ["MetricsAddress", "MetricsFeed", "serve_metrics"]


@dataclass(frozen=True, slots=True)
class MetricsAddress:
    """Where metrics are served. Nobody is asked who they are: keep it on a trusted network."""

    host: str
    port: int


@contextlib.contextmanager
def serve_metrics(
    address: MetricsAddress | None, store: Store, watch: Callable[[AggregatorState], None]
) -> Iterator[Callable[[AggregatorState], None]]:
    """Serves a run's metrics while the block runs, and gives what to call with each new state in place of `watch`.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    if address is None:
        yield watch
        return
    from edgefed.reports.exporter import Exporter  # prometheus-client is loaded only where it is wanted

    about = run_records(store)
    fleet = FleetSample(fleet=about.fleet, run=about.run, model=about.model, method=about.method)
    exporter = Exporter(Snapshot(fleet))
    feed = MetricsFeed(fleet, exporter.publish)
    feed.remember([*store.merged_rounds(), *store.answers()])
    exporter.serve(address.host, address.port)
    store.on_kept(feed.keep)

    def show(state: AggregatorState) -> None:
        feed.show(state)
        watch(state)

    try:
        yield show
    finally:
        exporter.close()


class MetricsFeed:
    """Keeps the snapshot up to date and publishes each new one.

    Args:
        fleet: whose metrics these are.
        publish: takes a new snapshot.
    """

    def __init__(self, fleet: FleetSample, publish: Callable[[Snapshot], None]) -> None:
        self._publish = publish
        self._snapshot = Snapshot(fleet)
        self._seen: set[str] = set()
        self._earlier_received_bytes = self._earlier_broadcast_bytes = 0

    def remember(self, kept: Iterable[Answer | MergedRound]) -> None:
        """Takes what an earlier aggregator of this run kept, so that totals go on where they were."""
        for one in kept:
            self._take(one)
            if isinstance(one, MergedRound):
                self._earlier_received_bytes += one.received_bytes
                self._earlier_broadcast_bytes += one.broadcast_bytes
        self._publish(self._snapshot)

    def keep(self, kept: Answer | MergedRound) -> None:
        """Takes what was just made durable."""
        self._take(kept)
        self._publish(self._snapshot)

    def show(self, state: AggregatorState) -> None:
        """Takes what the aggregator tells everybody."""
        fleet = replace(
            self._snapshot.fleet,
            phase=state.phase,
            round=state.round,
            rounds=state.rounds,
            joined=state.joined,
            accepted=state.accepted,
            delivered=state.updates,
            quorum=state.quorum,
            last_loss=state.last_loss,
            best_loss=state.best_loss,
            # A counter of Prometheus starts at 0 with its process, or never falls: what an unfinished round of an
            # earlier process moved is in nobody's total.
            received_bytes=state.received_bytes - self._earlier_received_bytes,
            broadcast_bytes=state.broadcast_bytes - self._earlier_broadcast_bytes,
        )
        self._snapshot = replace(self._snapshot, fleet=fleet)
        self._publish(self._snapshot)

    def _take(self, kept: Answer | MergedRound) -> None:
        if isinstance(kept, MergedRound):
            lasted_s = max(0.0, kept.merged_unix_s - kept.opened_unix_s)
            self._snapshot = replace(
                self._snapshot,
                merged_rounds=self._snapshot.merged_rounds + 1,
                rounds_s=self._snapshot.rounds_s + lasted_s,
                merges_s=self._snapshot.merges_s + kept.merge_s,
                last_round_s=lasted_s,
            )
            return
        before = self._snapshot
        outcomes = {**before.outcomes, kept.outcome: before.outcomes.get(kept.outcome, 0) + 1}
        devices = dict(before.devices)
        if kept.record is not None:
            self._seen.add(kept.device)
            # Put in anew, at the end: who was heard of last is kept when there are too many.
            devices[kept.device] = with_record(devices.pop(kept.device, DeviceSample()), kept.record)
            if len(devices) > MAX_DEVICES:
                del devices[next(iter(devices))]
        omitted = len(self._seen) - len(devices)
        self._snapshot = replace(before, outcomes=outcomes, devices=devices, omitted_devices=omitted)
