"""A real aggregator, killed at every durable write in turn: the federation ends, and no bit of its result differs."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from edgefed.coordinator.crash_points import CRASH_AT, Side, crash_point
from edgefed.coordinator.store import Store
from edgefed.errors import ConfigError
from tests.federation.stand_in import StandIn, federation_toml, make_paper_model
from tests.federation.test_aggregator import Run, devices
from tools.mosquitto import running_mosquitto

PATIENCE_S = 120
ROUNDS = 2
DEVICES = 2
MOST_STARTS = 80
# Opening a store that is there makes three writes. With these bounds, each start gets one write further than the last.
LIVES_WRITES: dict[Side, int] = {"after": 4, "before": 5}


class Result:
    """What a federation came to."""

    def __init__(self, run: Run, fleet: list[StandIn], deaths: int) -> None:
        self.deaths = deaths
        self.adapter = (run.directory / "adapter" / "adapter_model.safetensors").read_bytes()
        merges = run.history()[:ROUNDS]
        self.weights = [{name: one["weight"] for name, one in merge["devices"].items()} for merge in merges]  # type: ignore[attr-defined]
        self.told = {(device.name, word.round, word.sha256) for device in fleet for word in device.acknowledged}
        self.outcomes = {word.outcome for device in fleet for word in device.acknowledged}
        with Store.reading(run.directory) as store:
            self.answers = Counter((one.device, one.round, one.sha256) for one in store.answers())


async def play(directory: Path, side: Side | None) -> Result:
    """Plays a federation whose aggregator is killed before or after each write, until one lives to its end."""
    directory.mkdir()
    model = make_paper_model(directory / "model")
    with running_mosquitto() as broker:
        toml = federation_toml(model, directory / "run", broker.port, selection=f"expected_devices = {DEVICES}\n")
        run = Run(directory, toml.replace("rounds = 3", f"rounds = {ROUNDS}"))
        fleet = devices(model, directory, broker.port, DEVICES)
        taking_part = asyncio.gather(*(device.take_part() for device in fleet))
        try:
            deaths = await start_until_it_lives(run, side)
            await asyncio.wait_for(taking_part, PATIENCE_S)
        finally:
            taking_part.cancel()
            run.end()
    return Result(run, fleet, deaths)


async def start_until_it_lives(run: Run, side: Side | None) -> int:
    """Returns how often it was killed."""
    for deaths in range(MOST_STARTS):
        fatal = {} if side is None else {CRASH_AT: f"{side}:{min(deaths + 1, LIVES_WRITES[side])}"}
        code = await asyncio.to_thread(run.start(**fatal).wait, PATIENCE_S)
        if code == 0:
            return deaths
        assert code == -signal.SIGKILL, run.log.read_text()
    raise AssertionError(f"after {MOST_STARTS} starts it is not at its end:\n{run.log.read_text()}")


async def play_all(tmp_path: Path) -> list[Result]:
    return await asyncio.gather(
        play(tmp_path / "undisturbed", None), play(tmp_path / "before", "before"), play(tmp_path / "after", "after")
    )


@pytest.mark.broker
def test_a_kill_at_every_durable_write_in_turn_changes_no_bit_of_the_result(tmp_path: Path) -> None:
    undisturbed, *killed = asyncio.run(play_all(tmp_path))
    assert undisturbed.deaths == 0
    for one in killed:
        assert one.deaths > 12, "two devices in two rounds make more writes than that"
        assert one.adapter == undisturbed.adapter
        assert one.weights == undisturbed.weights
        assert set(one.answers.values()) == {1}
        assert set(one.answers) == set(undisturbed.answers)
        assert one.told <= set(
            one.answers
        )  # an acknowledgement that a kill swallowed is not waited for by these devices
        assert one.outcomes == {"counted"}


@pytest.mark.parametrize("wanted", ["", "7", "before:0", "during:3", "after:-1"])
def test_a_crash_point_that_names_no_write_is_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match=CRASH_AT):
        crash_point({CRASH_AT: wanted})


def test_without_a_crash_point_nothing_happens_at_a_write() -> None:
    at_write = crash_point({})
    at_write("before")
    at_write("after")
