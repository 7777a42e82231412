"""An agent of this release in a state directory that a newer one has written, as after a release was taken back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.messages.retained import DeviceState, RoundOpen, decode_device_state
from edgefed.protocol.messages.up import Decline, Join, UpMessage, decode_up
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, SummarizationTask, Training
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message, Transport
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from edgefed.updates.health import read_health
from tests.federation.stand_in import make_paper_model
from tests.federation.test_fleet_update import Board
from tests.security.secured import NAME
from tools.mosquitto import RunningMosquitto

pytestmark = [pytest.mark.broker, pytest.mark.federation]
PATIENCE_S = 90.0
TOPICS = Topics(NAME)
NEWER_LEDGER = '{"format": 2, "runs": {"r": []}}'


class Asking:
    """Who announces a round, and hears what the device says to it."""

    def __init__(self, board: Board, transport: Transport) -> None:
        self.board, self.transport = board, transport
        self.said: list[UpMessage] = []
        self.states: list[DeviceState] = []

    async def announce(self, model: Path) -> None:
        announced = RoundOpen(
            run="r",
            round=1,
            rounds=3,
            kind="train",
            model=ModelReference(name=str(model)),
            task=SummarizationTask(),
            method=LoraMethod(ranks=[2]),
            training=Training(),
            evaluation=Evaluation(),
            evaluates=False,
            deadline_s=600.0,
            seed=0,
            manifest=Manifest(),
        )
        await self.transport.publish(TOPICS.round, encode(announced), retain=True)

    async def read(self) -> None:
        async for event in self.transport.events():
            if isinstance(event, Message) and event.topic.endswith("/up"):
                self.said.append(decode_up(event.payload))
            elif isinstance(event, Message):
                self.states.append(decode_device_state(event.payload))

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        for _ in range(int(PATIENCE_S / 0.02)):
            if holds():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{what} does not come: {self.said} {self.states[-1:]}\n{self.board.log.read_text()}")


@contextlib.asynccontextmanager
async def asking(directory: Path, port: int) -> AsyncIterator[Asking]:
    (directory / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
    board = Board(directory, "one", f'host = "127.0.0.1"\nport = {port}\n')
    board.state.mkdir()
    async with connect_mqtt(MqttOptions("127.0.0.1", port, client_id="asking")) as transport:
        asks = Asking(board, transport)
        for channel in ("up", "state"):
            await transport.subscribe(TOPICS.device("one", channel))
        reading = asyncio.create_task(asks.read())
        try:
            yield asks
        finally:
            board.end()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def test_what_a_newer_ledger_says_is_not_forgotten_and_the_device_can_take_the_newer_release_again(
    tmp_path: Path, mosquitto: RunningMosquitto
) -> None:
    async with asking(tmp_path, mosquitto.port) as asks:
        ledger = asks.board.state / "privacy.json"
        ledger.write_text(NEWER_LEDGER)
        asks.board.start()
        await asks.announce(make_paper_model(tmp_path / "model"))
        await asks.until("its word", lambda: any(isinstance(word, Decline) for word in asks.said))
        (declined,) = [word for word in asks.said if isinstance(word, Decline)]
        assert "if a newer release has written it, install that one" in declined.reason
        await asks.until("its state", lambda: "privacy.json" in asks.states[-1].note)
        health = read_health(asks.board.state)
        assert health is not None
        assert health.connected, "only a connected agent can be offered a release"
        assert asks.board.process is not None
        assert asks.board.process.poll() is None
        assert ledger.read_text() == NEWER_LEDGER


async def test_what_is_only_experience_is_gained_anew(tmp_path: Path, mosquitto: RunningMosquitto) -> None:
    async with asking(tmp_path, mosquitto.port) as asks:
        state = asks.board.state
        kept = state / "runs" / "r"
        kept.mkdir(parents=True)
        (kept / "offer-1.json").write_text('{"type": "update-offer", "run": "r", "round": 1, "format": 2}')
        (kept / "update-1.safetensors").write_bytes(b"in another format")
        (state / "updates").mkdir()
        for name in ("plans.json", "profile.json", "health.json", "updates/offer.json"):
            (state / name).write_text('{"format": 2, "outcomes": 7, "identity": 7, "offer": 7, "pid": "7"}')
        asks.board.start()
        await asks.announce(make_paper_model(tmp_path / "model"))
        await asks.until("its word", lambda: any(isinstance(word, Join) for word in asks.said))
        assert "runs/r/offer-1.json is left aside: " in asks.board.log.read_text(), "what was trained then is not sent"
