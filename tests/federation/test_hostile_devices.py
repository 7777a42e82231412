"""An aggregator process on a real Mosquitto, and devices that lie: honest ones finish, and the sum is theirs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgefed.coordinator.run_records import read_run_records
from edgefed.lora.low_rank import LowRank
from edgefed.protocol.messages.retained import AggregatorState, RoundOpen, decode_aggregator_state, decode_round
from edgefed.protocol.messages.up import Decline
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message, Transport
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from tests.federation.stand_in import FLEET, StandIn, federation_toml, make_paper_model
from tests.federation.test_aggregator import Run, devices, finish, running
from tools.mosquitto import RunningMosquitto

pytestmark = pytest.mark.broker


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_paper_model(tmp_path / "model")


def two_rounds(model: Path, tmp_path: Path, port: int, robustness: str, *, count: int, transfers: str = "") -> str:
    toml = federation_toml(
        model,
        tmp_path / "run",
        port,
        selection=f"expected_devices = {count}\nquorum = {count}\ndeadline_s = 60\n",
        transfers=transfers,
    )
    return toml.replace("rounds = 3", "rounds = 2") + f"[robustness]\n{robustness}"


def weights(run: Run) -> list[dict[str, float]]:
    lines = [line for line in run.history() if line["kind"] == "train"]
    return [{device: one["weight"] for device, one in line["devices"].items()} for line in lines]  # type: ignore[attr-defined]


def last_state(port: int) -> AggregatorState:
    """What the broker keeps of the aggregator."""

    async def read() -> AggregatorState:
        options = MqttOptions("127.0.0.1", port, client_id="reader", session_expiry_s=0)
        async with connect_mqtt(options) as transport:
            await transport.subscribe(Topics(FLEET).aggregator_state)
            async for event in transport.events():
                if isinstance(event, Message):
                    return decode_aggregator_state(event.payload)
        raise AssertionError("no state")

    return asyncio.run(asyncio.wait_for(read(), 60))


async def first_round(transport: Transport) -> RoundOpen:
    async for event in transport.events():
        if isinstance(event, Message) and isinstance(announced := decode_round(event.payload), RoundOpen):
            return announced
    raise AssertionError("no round")


def huge(adapter: dict[str, LowRank]) -> dict[str, LowRank]:
    return {module: matrix.scaled(-1e4) for module, matrix in adapter.items()}


def test_a_claim_of_a_billion_examples_counts_as_much_as_is_allowed(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    toml = two_rounds(model, tmp_path, mosquitto.port, "max_weight_share = 0.4\nmax_examples = 10000\n", count=3)
    with running(tmp_path, toml) as run:
        fleet = devices(model, tmp_path, mosquitto.port)
        fleet[0].examples = 10**9
        finish(run, fleet)
    for found in weights(run):
        assert found == pytest.approx({"dev-0": 0.4, "dev-1": 0.6 * 11 / 23, "dev-2": 0.6 * 12 / 23})


def test_multi_krum_keeps_a_hostile_device_out_and_says_so(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto
) -> None:
    toml = two_rounds(model, tmp_path, mosquitto.port, 'rule = "multi_krum"\nbyzantine = 1\n', count=5)
    with running(tmp_path, toml) as run:
        fleet = devices(model, tmp_path, mosquitto.port, count=5)
        fleet[0].edit = huge
        finish(run, fleet)
    assert [sorted(found) for found in weights(run)] == [["dev-1", "dev-2", "dev-3", "dev-4"]] * 2
    assert all(word.outcome == "counted" for device in fleet for word in device.acknowledged)
    records = read_run_records(run.directory)
    assert {(one.device, one.outcome) for one in records.deliveries if one.round < 3} == {
        ("dev-0", "excluded"),
        *((f"dev-{at}", "counted") for at in range(1, 5)),
    }
    state = last_state(mosquitto.port)
    assert (state.status, state.excluded) == ("finished", 2)
    assert [(one.device, one.what, one.round) for one in state.refusals] == [("dev-0", "excluded", at) for at in (1, 2)]
    assert all(line["adapter_norm"] < 1e3 for line in run.history() if line["kind"] == "train")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("edit", "robustness", "reason"),
    [
        (huge, 'max_update_norm = 500.0\nover_norm = "reject"\n', "its change has norm"),
        (lambda adapter: {m: one.scaled(1e35) for m, one in adapter.items()}, "", "values of this size"),
    ],
    ids=["over-the-norm", "breaks-any-sum"],
)
def test_an_update_that_is_too_large_is_refused_and_the_others_go_on(
    tmp_path: Path, model: Path, mosquitto: RunningMosquitto, edit: object, robustness: str, reason: str
) -> None:
    toml = two_rounds(model, tmp_path, mosquitto.port, robustness, count=3).replace("quorum = 3", "quorum = 2")
    with running(tmp_path, toml) as run:
        fleet = devices(model, tmp_path, mosquitto.port)
        fleet[0].edit = edit  # type: ignore[assignment]
        finish(run, fleet)
    assert [word.outcome for word in fleet[0].acknowledged[:2]] == ["rejected"] * 2
    assert reason in fleet[0].acknowledged[0].reason
    assert [sorted(found) for found in weights(run)] == [["dev-1", "dev-2"]] * 2
    state = last_state(mosquitto.port)
    assert state.rejected == 2
    assert reason in state.refusals[-1].reason


def test_a_flood_is_silenced_and_the_federation_ends(tmp_path: Path, model: Path, mosquitto: RunningMosquitto) -> None:
    toml = two_rounds(model, tmp_path, mosquitto.port, "", count=3, transfers="max_messages_per_minute = 120\n")
    toml = toml.replace("deadline_s = 60", "deadline_s = 4")  # where the last word heard was a join, it is waited for

    async def flood(device: StandIn) -> None:
        options = MqttOptions("127.0.0.1", mosquitto.port, client_id="flood", session_expiry_s=0)
        async with connect_mqtt(options, retry_first=True) as transport:
            await transport.subscribe(Topics(FLEET).round)
            announced = await first_round(transport)
            join = device._join(announced)
            decline = Decline(run=join.run, round=join.round, reason="no")
            for _ in range(500):
                await transport.publish(Topics(FLEET).device("flood", "up"), encode(join))
                await transport.publish(Topics(FLEET).device("flood", "up"), encode(decline))

    with running(tmp_path, toml) as run:
        fleet = devices(model, tmp_path, mosquitto.port)

        async def all_of_them() -> None:
            await flood(fleet[0])
            await asyncio.wait_for(asyncio.gather(*(device.take_part() for device in fleet)), 240)

        asyncio.run(all_of_them())
        assert run.process is not None
        assert run.process.wait(60) == 0, run.log.read_text()
    state = last_state(mosquitto.port)
    assert (state.status, state.silenced) == ("finished", 1)
    assert [sorted(found) for found in weights(run)] == [["dev-0", "dev-1", "dev-2"]] * 2
