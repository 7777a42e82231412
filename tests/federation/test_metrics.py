"""What a real aggregator process shows to Prometheus during a federation, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import msgspec
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from edgefed.coordinator.run_records import read_run_records
from edgefed.protocol.messages.up import UpdateOffer
from edgefed.reports.build import build_report
from tests.federation.stand_in import StandIn, federation_toml, make_paper_model
from tests.reports.made_runs import make_run
from tools.mosquitto import RunningMosquitto, free_port

pytestmark = pytest.mark.broker
PATIENCE_S = 60


def command(config: Path, *options: object) -> list[str]:
    return [sys.executable, "-m", "edgefed", "-v", "aggregator", "--config", str(config), *map(str, options)]


def with_real_figures(offer: UpdateOffer) -> UpdateOffer:
    """The record of a device that measured everything; its upload time is not its own to tell."""
    full = next(one.record for one in make_run().deliveries if one.record is not None and one.record.use is not None)
    names = ("steps", "forward_s", "backward_s", "source_tokens", "target_tokens", "use", "board")
    record = msgspec.structs.replace(offer.record, **{name: getattr(full, name) for name in names})
    return msgspec.structs.replace(
        offer, record=msgspec.structs.replace(record, upload_s=1e6, upload_bytes=offer.size_bytes)
    )


def scrape(port: int) -> dict[str, Metric]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def value(family: Metric, **labels: str) -> float:
    (sample,) = [one for one in family.samples if labels.items() <= one.labels.items()]
    return float(sample.value)


async def scrape_until(process: asyncio.subprocess.Process, port: int) -> list[dict[str, Metric]]:
    """Returns every scrape that was answered until the aggregator ended."""
    found = []
    while process.returncode is None:
        with contextlib.suppress(OSError):  # not listening yet, or no longer
            found.append(await asyncio.to_thread(scrape, port))
        await asyncio.sleep(0.1)
    return found


async def test_scrapes_during_a_federation(tmp_path: Path, mosquitto: RunningMosquitto) -> None:
    model, port = make_paper_model(tmp_path / "model"), free_port()
    config, log = tmp_path / "federation.toml", tmp_path / "log"
    config.write_text(
        federation_toml(model, tmp_path / "run", mosquitto.port, selection="expected_devices = 2\nquorum = 2\n")
    )
    one = StandIn("one", model, tmp_path, mosquitto.port, offer_edit=with_real_figures)
    two = StandIn("two", model, tmp_path, mosquitto.port, rank=4)
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(*command(config, "--metrics-port", port), stdout=out, stderr=out)
    try:
        taking_part = asyncio.gather(one.take_part(), two.take_part(), scrape_until(process, port))
        *_, scrapes = await asyncio.wait_for(taking_part, PATIENCE_S)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    assert process.returncode == 0, log.read_text()

    counted = [value(found["edgefed_updates"], outcome="counted") for found in scrapes]
    assert counted == sorted(counted)
    found = scrapes[-1]
    assert counted[-1] == 6
    assert value(found["edgefed_updates"], outcome="evaluated") == 2
    rounds = {sample.name: sample.value for sample in found["edgefed_round_duration_seconds"].samples}
    assert rounds["edgefed_round_duration_seconds_count"] == 3
    assert rounds["edgefed_round_duration_seconds_sum"] > 0
    assert value(found["edgefed_transfer_bytes"], direction="received") > 0
    assert value(found["edgefed_federation_phase"], edgefed_federation_phase="finished") == 1
    assert value(found["edgefed_device_rounds"], device="one") == 4
    assert value(found["edgefed_device_tokens_per_second"], device="one") > 0
    assert [sample.labels["fleet"] for sample in found["edgefed_aggregator_info"].samples] == ["test"]
    check_what_is_left(tmp_path / "run")


def check_what_is_left(run: Path) -> None:
    """The store tells the upload's time as the aggregator saw it, and the page is there."""
    report = build_report(read_run_records(run))
    trained = [row.record for row in report.device_rounds if row.record is not None and row.outcome == "counted"]
    assert len(trained) == 6
    assert all(record.upload_s is not None and 0 < record.upload_s < PATIENCE_S for record in trained)
    assert [one.kind for one in report.rounds] == ["train"] * 3 + ["evaluate"]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [one.loss.value for one in report.rounds] == pytest.approx([line["loss_before"] for line in history])
    assert "<h2>Fleet</h2>" in (run / "report.html").read_text()


def test_a_metrics_port_in_use_ends_it_with_words(tmp_path: Path, mosquitto: RunningMosquitto) -> None:
    config = tmp_path / "federation.toml"
    config.write_text(federation_toml(make_paper_model(tmp_path / "model"), tmp_path / "run", mosquitto.port))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            command(config, "--metrics-port", port), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    assert done.returncode == 3
    assert f"metrics cannot be served on 127.0.0.1 port {port}: Address already in use" in done.stderr
