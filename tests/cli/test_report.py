"""`edgefed report` on a run's store, as an aggregator leaves it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.events import Begin
from edgefed.coordinator.store import Store
from edgefed.protocol.messages.manifest import Manifest
from tests.reports.made_runs import make_run

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three devices in the store that an aggregator would have written."""
    return keep(tmp_path / "edgefed-run", devices=3)


SETTINGS = {
    "fleet": "harbour",
    "model": {"name": "google/flan-t5-base"},
    "method": {"type": "lora", "aggregation": "delta"},
}


def keep(directory: Path, *, devices: int) -> Path:
    made = make_run(devices, 2)
    store = Store.open(directory, SETTINGS)
    assert store.run
    for one in made.deliveries:
        answer = Answer(
            round=one.round, device=one.device, sha256="", size_bytes=1, outcome=one.outcome, reason=one.reason,
            record=one.record, received_unix_s=one.received_unix_s,
        )  # fmt: skip
        store.add_answer(answer)
    for merged in made.rounds:
        store.add_merged(
            Begin(), 0.0,
            MergedRound(round=merged.round, manifest=Manifest(), devices={}, norm=1.0, merge_s=merged.merge_s,
                        broadcast_bytes=1, received_bytes=1, opened_unix_s=merged.opened_unix_s,
                        merged_unix_s=merged.merged_unix_s),
        )  # fmt: skip
    store.close()
    return directory


def test_the_page_goes_into_the_run(edgefed: Run, run: Path) -> None:
    done = edgefed("report", run)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"wrote {run / 'report.html'}\n"
    assert (run / "report.html").read_text().count('<article class="device">') == 3


def test_a_run_at_work_is_read_and_left_alone(edgefed: Run, run: Path) -> None:
    store = Store.open(run, SETTINGS)
    before = sorted(path.name for path in run.iterdir())
    assert edgefed("report", run, "--format", "csv").code == 0
    assert sorted(path.name for path in run.iterdir()) == before
    store.close()


def test_tables_go_to_stdout_or_into_a_file(edgefed: Run, run: Path, tmp_path: Path) -> None:
    done = edgefed("report", run, "--format", "csv", "--device", "agx-01")
    assert {line["device"] for line in csv.DictReader(io.StringIO(done.out))} == {"agx-01"}
    assert edgefed("report", run, "-f", "json", "-o", tmp_path / "r.json").out == f"wrote {tmp_path / 'r.json'}\n"
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == "edgefed-report/1"
    (tmp_path / "link").symlink_to("r.csv")
    assert edgefed("report", run, "-f", "csv", "-o", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "r.csv").read_text() == edgefed("report", run, "-f", "csv").out


def test_beside_another_run_and_a_reference(edgefed: Run, run: Path, tmp_path: Path) -> None:
    other = keep(tmp_path / "other", devices=2)
    assert edgefed("report", other, "-f", "json", "-o", tmp_path / "reference.json").code == 0
    done = edgefed("report", run, "--compare", other, "--reference", tmp_path / "reference.json")
    assert done.code == 0
    page = (run / "report.html").read_text()
    assert "Beside run other" in page
    assert "run other, google/flan-t5-base" in page
    document = json.loads(edgefed("report", run, "--compare", other, "-f", "json").out)
    assert (document["schema"], document["only_after"]) == ("edgefed-comparison/1", ["pi-02"])


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--device", "nobody"], 3, "no device 'nobody' delivered anything"),
        (["--reference", "absent.json"], 3, "absent.json: the reference cannot be read"),
        (["--reference", "absent.json", "--format", "csv"], 2, "--reference is for the page"),
        (["--format", "pdf"], 2, "pdf"),
        (["--compare", "absent"], 9, "absent has no store.sqlite"),
        (["--output", "/proc/no/such/place.html"], 3, "cannot be used"),
    ],
)
def test_what_is_wrong_is_said(edgefed: Run, run: Path, options: list[str], code: int, said: str) -> None:
    done = edgefed("report", run, *options)
    assert done.code == code
    assert said in done.err


def test_a_directory_that_is_no_run(edgefed: Run, tmp_path: Path) -> None:
    done = edgefed("report", tmp_path)
    assert done.code == 9
    assert "has no store.sqlite" in done.err
    assert list(tmp_path.iterdir()) == []
