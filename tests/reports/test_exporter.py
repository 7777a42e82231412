from __future__ import annotations

import contextlib
import socket
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from edgefed.errors import ConfigError
from edgefed.reports.exporter import Exporter
from edgefed.reports.snapshot import Snapshot
from tests.reports.made_snapshots import make_snapshot


@contextlib.contextmanager
def served(snapshot: Snapshot) -> Iterator[tuple[Exporter, int]]:
    exporter = Exporter(snapshot)
    port = exporter.serve("127.0.0.1", 0)
    try:
        yield exporter, port
    finally:
        exporter.close()


def scrape(port: int) -> dict[str, Metric]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(family: Metric, **labels: str) -> float:
    (sample,) = [one for one in family.samples if labels.items() <= one.labels.items()]
    return float(sample.value)


def test_a_scrape_parses_and_says_what_the_snapshot_says() -> None:
    snapshot = make_snapshot()
    with served(snapshot) as (exporter, port):
        found = scrape(port)
        exporter.publish(Snapshot(snapshot.fleet))
        later = scrape(port)
    assert value(found["edgefed_updates"], outcome="counted") == 28
    assert value(found["edgefed_updates"], outcome="rejected") == 1
    assert value(found["edgefed_transfer_bytes"], direction="received") == 12345
    assert value(found["edgefed_federation_phase"], edgefed_federation_phase="training") == 1
    sample = snapshot.devices["agx-01"]
    assert sample.use is not None
    assert value(found["edgefed_device_tokens_per_second"], device="agx-01") == sample.use.tokens_per_s.value
    assert value(found["edgefed_device_mfu_ratio"], device="agx-01", peak="live") == sample.use.mfu_live.value
    assert value(found["edgefed_device_energy_joules"], device="agx-01") == pytest.approx(sample.joules)
    assert value(found["edgefed_devices"]) == 9
    assert later["edgefed_device_tokens_per_second"].samples == []
    assert value(later["edgefed_updates"], outcome="counted") == 0


def test_names_and_helps_are_conventional() -> None:
    with served(make_snapshot()) as (_, port):
        for name, family in scrape(port).items():
            assert name.startswith("edgefed_")
            assert family.documentation.endswith(".")
            assert family.type != "unknown"
            assert not name.endswith(("_ms", "_kb", "_mb", "_percent_ratio"))
            for sample in family.samples:
                assert sample.name.endswith("_total") == (family.type == "counter")


def test_the_unknown_has_no_sample() -> None:
    with served(make_snapshot(known=False)) as (_, port):
        found = scrape(port)
    for name in ("edgefed_device_mfu_ratio", "edgefed_device_power_watts", "edgefed_device_energy_joules"):
        assert found[name].samples == []
    assert found["edgefed_device_tokens_per_second"].samples != []


def test_hostile_texts_stay_labels_and_are_cut() -> None:
    with served(make_snapshot(hostile=True)) as (_, port):
        found = scrape(port)
    boards = {sample.labels["board"] for sample in found["edgefed_device_info"].samples}
    assert boards
    assert all(len(board) <= 80 for board in boards)


def test_a_port_in_use_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1 port {port}: Address already in use; .*--metrics-port"):
            Exporter(make_snapshot()).serve("127.0.0.1", port)


def test_an_address_of_another_machine_is_said() -> None:
    with pytest.raises(ConfigError, match=r"metrics cannot be served on 192\.0\.2\.1"):
        Exporter(make_snapshot()).serve("192.0.2.1", 9464)
