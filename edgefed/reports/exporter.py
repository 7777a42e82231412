"""Metrics for Prometheus: base units, `_total` for what only grows, a help text for each.

The HTTP server answers in threads of its own out of the latest snapshot, so a scrape never waits for the aggregator's
event loop, nor the loop for a scrape. A figure that is not known has no sample; it is never 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from edgefed import __version__
from edgefed.errors import ConfigError
from edgefed.reports.snapshot import DeviceSample, FleetSample, Snapshot
from edgefed.reports.timeline import PHASES
from edgefed.reports.utilization import Figure, Utilization

__all__ = ["Exporter", "collect"]

_PHASES = ("gathering", "training", "merging", "finished")
_OUTCOMES = ("counted", "late", "dropped", "rejected", "evaluated")
_MAX_LABEL = 80


class Exporter(Collector):
    """Serves the metrics of the snapshot that was published last."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._stop: Callable[[], None] = lambda: None

    def publish(self, snapshot: Snapshot) -> None:
        """Shows this from now on. It may be called from any thread and takes no time."""
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yields every metric family; the registry calls it for each scrape."""
        return collect(self._snapshot)

    def serve(self, host: str, port: int) -> int:
        """Begins to answer at http://host:port/metrics, and returns the port (a free one for port 0).

        Raises:
            ConfigError: the address cannot be listened on.
        """
        registry = CollectorRegistry()
        registry.register(self)
        try:
            server, thread = start_http_server(port, addr=host, registry=registry)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"metrics cannot be served on {host} port {port}: {why}; name another with --metrics-port"
            ) from error
        self._stop = lambda: _end(server, thread)
        return int(server.server_port)

    def close(self) -> None:
        """Stops answering."""
        self._stop()


def _end(server: object, thread: threading.Thread) -> None:
    server.shutdown()  # type: ignore[attr-defined]
    server.server_close()  # type: ignore[attr-defined]
    thread.join()


def collect(snapshot: Snapshot) -> Iterator[Metric]:
    """Yields every metric family of a snapshot."""
    yield from _of_fleet(snapshot.fleet)
    yield from _of_rounds(snapshot)
    yield from _of_devices(snapshot)


def _of_fleet(fleet: FleetSample) -> Iterator[Metric]:
    about = {"fleet": fleet.fleet, "run": fleet.run, "model": fleet.model, "method": fleet.method}
    labels = {name: text[:_MAX_LABEL] for name, text in about.items()}
    yield InfoMetricFamily("edgefed_aggregator", "The federation.", {**labels, "version": __version__})
    phase = StateSetMetricFamily("edgefed_federation_phase", "What the federation is doing.", labels=[])
    phase.add_metric([], {name: name == fleet.phase for name in _PHASES})
    yield phase
    yield _gauge("edgefed_round_number", "The open round, from 1.", fleet.round)
    yield _gauge("edgefed_rounds_planned", "Rounds that the federation shall have.", fleet.rounds)
    yield _gauge("edgefed_round_devices_joined", "Devices that asked to take part in the open round.", fleet.joined)
    yield _gauge("edgefed_round_devices_accepted", "Devices that take part in the open round.", fleet.accepted)
    yield _gauge("edgefed_round_devices_delivered", "Devices that answered in the open round.", fleet.delivered)
    yield _gauge("edgefed_round_quorum_devices", "Answers without which a round does not close.", fleet.quorum)
    loss = "evaluated loss of the global adapter, nats per target token."
    yield _gauge("edgefed_evaluated_loss", f"Latest {loss}", fleet.last_loss)
    yield _gauge("edgefed_evaluated_loss_best", f"Lowest {loss}", fleet.best_loss)
    transfers = CounterMetricFamily(
        "edgefed_transfer_bytes", "Payload bytes at the aggregator since it was started.", labels=["direction"]
    )
    transfers.add_metric(["received"], fleet.received_bytes)
    transfers.add_metric(["broadcast"], fleet.broadcast_bytes)
    yield transfers


def _of_rounds(snapshot: Snapshot) -> Iterator[Metric]:
    updates = CounterMetricFamily("edgefed_updates", "Answers of devices, by what became of them.", labels=["outcome"])
    for outcome in _OUTCOMES:
        updates.add_metric([outcome], snapshot.outcomes.get(outcome, 0))
    yield updates
    yield SummaryMetricFamily(
        "edgefed_round_duration_seconds",
        "Merged rounds, from opening to merge.",
        count_value=snapshot.merged_rounds,
        sum_value=snapshot.rounds_s,
    )
    yield SummaryMetricFamily(
        "edgefed_merge_duration_seconds",
        "Merges of rounds.",
        count_value=snapshot.merged_rounds,
        sum_value=snapshot.merges_s,
    )
    yield _gauge("edgefed_round_last_duration_seconds", "The latest merged round.", snapshot.last_round_s)


def _of_devices(snapshot: Snapshot) -> Iterator[Metric]:
    yield _gauge("edgefed_devices", "Devices that sent a record.", len(snapshot.devices) + snapshot.omitted_devices)
    yield _gauge(
        "edgefed_devices_omitted", "Devices that are left out of the metrics by device.", snapshot.omitted_devices
    )
    devices = sorted(snapshot.devices.items())
    info = InfoMetricFamily("edgefed_device", "A device's latest plan.", labels=["device"])
    for name, sample in devices:
        if (latest := sample.latest) is not None:
            texts = {
                "board": latest.board or "",
                "emulated": latest.emulated or "",
                "quantization": latest.quantization,
            }
            info.add_metric(
                [name], {**{key: text[:_MAX_LABEL] for key, text in texts.items()}, "rank": str(latest.rank)}
            )
    yield info
    for metric, text, read in _TOTALS:
        counter = CounterMetricFamily(metric, text, labels=["device"])
        for name, sample in devices:
            if (value := read(sample)) is not None:
                counter.add_metric([name], value)
        yield counter
    for metric, label, text, by_label in _LABELLED_TOTALS:
        counter = CounterMetricFamily(metric, text, labels=["device", label])
        for name, sample in devices:
            for value_of_label, value in by_label(sample).items():
                counter.add_metric([name, value_of_label], value)
        yield counter
    yield from _measures(devices)


def _measures(devices: list[tuple[str, DeviceSample]]) -> Iterator[Metric]:
    for metric, text, figure in _MEASURES:
        gauge = GaugeMetricFamily(metric, text, labels=["device"])
        for name, sample in devices:
            value = figure(sample.use).value if sample.use is not None else None
            if value is not None:
                gauge.add_metric([name], value)
        yield gauge
    mfu = GaugeMetricFamily(
        "edgefed_device_mfu_ratio",
        "Model FLOPs utilization in the latest round, of the measured (live) or the data sheet's (sheet) peak.",
        labels=["device", "peak"],
    )
    loss = GaugeMetricFamily(
        "edgefed_device_training_loss", "Mean loss of the latest round, nats per target token.", labels=["device"]
    )
    for name, sample in devices:
        if sample.use is not None:
            for peak, share in (("live", sample.use.mfu_live), ("sheet", sample.use.mfu_sheet)):
                if share.value is not None:
                    mfu.add_metric([name, peak], share.value)
        if sample.latest is not None and sample.latest.loss_mean is not None:
            loss.add_metric([name], sample.latest.loss_mean)
    yield mfu
    yield loss


def _gauge(name: str, text: str, value: float | None) -> Metric:
    gauge = GaugeMetricFamily(name, text)
    if value is not None:
        gauge.add_metric([], value)
    return gauge


_TOTALS: tuple[tuple[str, str, Callable[[DeviceSample], float | None]], ...] = (
    ("edgefed_device_rounds", "Records that the device sent.", lambda s: s.rounds),
    ("edgefed_device_steps", "Optimizer steps.", lambda s: s.steps),
    ("edgefed_device_energy_joules", "Energy, of the scope that the device's sensor sees.", lambda s: s.joules),
    ("edgefed_device_throttled_seconds", "Seconds below the clock for heat or power.", lambda s: s.throttled_s),
)

_LABELLED_TOTALS: tuple[tuple[str, str, str, Callable[[DeviceSample], dict[str, float]]], ...] = (
    (
        "edgefed_device_tokens",
        "kind",
        "Tokens that were trained on, without padding.",
        lambda s: {"source": s.source_tokens, "target": s.target_tokens},
    ),
    (
        "edgefed_device_transfer_bytes",
        "direction",
        "Bytes that the device took and sent.",
        lambda s: {"download": s.download_bytes, "upload": s.upload_bytes},
    ),
    (
        "edgefed_device_phase_seconds",
        "phase",
        "Seconds by what the device did.",
        lambda s: {phase: s.phases.seconds(phase) for phase in PHASES if phase != "idle"},
    ),
)

_MEASURES: tuple[tuple[str, str, Callable[[Utilization], Figure]], ...] = (
    ("edgefed_device_tokens_per_second", "In the latest round, per second of compute.", lambda u: u.tokens_per_s),
    ("edgefed_device_tokens_per_joule", "Energy efficiency in the latest round.", lambda u: u.tokens_per_s_per_w),
    ("edgefed_device_power_watts", "Mean power in the latest round.", lambda u: u.mean_w),
    ("edgefed_device_step_seconds", "Mean step of the latest round.", lambda u: u.step_s),
    ("edgefed_device_predicted_step_seconds", "What the plan expected of a step.", lambda u: u.predicted_step_s),
    ("edgefed_device_peak_memory_bytes", "Most that training used in the latest round.", lambda u: u.peak_memory_bytes),
    (
        "edgefed_device_predicted_peak_memory_bytes",
        "What the plan expected of the peak.",
        lambda u: u.predicted_peak_bytes,
    ),
    ("edgefed_device_temperature_celsius", "Hottest sensor in the latest round.", lambda u: u.temperature_max_c),
    ("edgefed_device_cpu_load_percent", "Mean load of all cores in the latest round.", lambda u: u.cpu_percent),
    ("edgefed_device_gpu_load_percent", "Mean load of the GPU in the latest round.", lambda u: u.gpu_percent),
    ("edgefed_device_granularity_ratio", "Compute over transfer time in the latest round.", lambda u: u.granularity),
)
