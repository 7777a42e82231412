"""What the operator has said of a device in one federation holds in the next one of the fleet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgefed.coordinator.events import RosterRead
from edgefed.coordinator.roster import read_roster
from edgefed.coordinator.store import Store
from tests.federation.stand_in import federation_toml, make_paper_model
from tests.federation.test_aggregator import Run, devices, finish
from tools.mosquitto import RunningMosquitto

pytestmark = [pytest.mark.broker, pytest.mark.federation]


def test_a_device_that_was_removed_is_removed_in_the_next_federation(
    tmp_path: Path, mosquitto: RunningMosquitto
) -> None:
    model = make_paper_model(tmp_path / "model")
    for name, there in (("first", 2), ("second", 1)):
        place = tmp_path / name
        place.mkdir()
        selection = f"expected_devices = {there}\n"
        toml = federation_toml(
            model, place / "run", mosquitto.port, top='roster = "../roster.json"\n', selection=selection
        )
        run = Run(place, toml)
        run.start()
        try:
            finish(run, devices(model, place, mosquitto.port, there))
        finally:
            run.end()
        if name == "first":
            say = [sys.executable, "-m", "edgefed", "fleet", "remove", "dev-1", "--yes", "--run", str(run.directory)]
            done = subprocess.run(say, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    with Store.reading(run.directory) as store:
        told = [event for event, _ in store.journal() if isinstance(event, RosterRead)]
    assert told == [RosterRead((("dev-1", "removed"),))]
    assert read_roster(tmp_path / "roster.json").held == (("dev-1", "removed"),)
