"""A federation that is over is given more rounds, and its devices, which have stayed, take part in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fleet import Agent, Mischief
from tests.federation.stand_in import federation_toml, make_paper_model
from tests.federation.test_aggregator import PATIENCE_S, Run
from tools.mosquitto import RunningMosquitto

pytestmark = [pytest.mark.broker, pytest.mark.federation]


def test_devices_that_stayed_take_part_in_the_rounds_that_were_added(
    tmp_path: Path, mosquitto: RunningMosquitto
) -> None:
    """They had evaluated in the round after the last one, and thought that they were done with it."""
    model = make_paper_model(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
    toml = federation_toml(model, tmp_path / "run", mosquitto.port, selection="expected_devices = 1\n")
    run = Run(tmp_path, toml.replace("rounds = 3", "rounds = 1"))
    agent = Agent(tmp_path, "one", mosquitto.port, 2, Mischief("one", "stay", 0))
    agent.start()
    try:
        assert run.start().wait(PATIENCE_S) == 0, run.log.read_text()
        assert [line["kind"] for line in run.history()] == ["train", "evaluate"]
        run.config.write_text(toml.replace("rounds = 3", "rounds = 2"))
        assert run.start().wait(PATIENCE_S) == 0, run.log.read_text()
        assert [line["kind"] for line in run.history()] == ["train", "train", "evaluate"]
        assert all(line["devices"] for line in run.history())
    finally:
        agent.kill()
        run.end()
