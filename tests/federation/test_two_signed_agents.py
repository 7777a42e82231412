"""Two machines with one device id in a signed fleet, each with a valid certificate of that name: who is believed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from edgefed.devices.profile import DeviceProfile
from edgefed.protocol.messages.retained import DeviceState, decode_device_state
from edgefed.protocol.topics import Topics
from edgefed.security.authorship import read_observation
from edgefed.security.identities import AGGREGATOR
from edgefed.transport.base import Distrusted, Message
from edgefed.transport.signed import SignedTransport
from tests.faults.proxy import FaultProxy
from tests.federation.test_fleet_update import Board, broker_lines
from tests.security.secured import NAME, Secured, device

pytestmark = [pytest.mark.broker, pytest.mark.federation]
PATIENCE_S = 90.0
TOPICS = Topics(NAME)


class Witness:
    """Judges what the device says as the aggregator does, and keeps the latest that is believed."""

    def __init__(self) -> None:
        self.states: list[DeviceState] = []
        self.profile: DeviceProfile | None = None
        self.distrusted: list[Distrusted] = []

    @property
    def shown(self) -> tuple[int, str]:
        """Which process was believed last, and what it does."""
        return (self.states[-1].pid, self.states[-1].status) if self.states else (0, "")

    @contextlib.asynccontextmanager
    async def listening(self, secured: Secured) -> AsyncIterator[None]:
        place = secured.fleet.place(AGGREGATOR)
        async with secured.connect(AGGREGATOR) as connected:
            transport = SignedTransport(connected, read_observation(TOPICS, ca=place / "ca.pem"))
            for channel in ("state", "profile"):
                await transport.subscribe(TOPICS.device("one", channel))
            reading = asyncio.create_task(self._read(transport))
            try:
                yield
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, transport: SignedTransport) -> None:
        async for event in transport.events():
            if isinstance(event, Distrusted):
                self.distrusted.append(event)
            elif isinstance(event, Message) and event.topic.endswith("/profile"):
                self.profile = msgspec.json.decode(event.payload, type=DeviceProfile)
            elif isinstance(event, Message):
                self.states.append(decode_device_state(event.payload))


class World:
    """The two machines, the first behind a link of its own, and who listens to them."""

    def __init__(self, directory: Path, secured: Secured, proxy: FaultProxy) -> None:
        self.secured, self.proxy, self.witness = secured, proxy, Witness()
        self.first, self.second = (
            self._machine(directory / name, port) for name, port in (("here", proxy.port), ("there", secured.port))
        )

    def _machine(self, directory: Path, port: int) -> Board:
        directory.mkdir()
        (directory / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
        lines = broker_lines(self.secured, device("one"), port).replace("keepalive_s = 5", "keepalive_s = 600")
        return Board(directory, "one", lines)

    async def ready(self, board: Board) -> int:
        """Returns the process of an agent that has been started, has measured its machine, and is believed."""
        board.start()
        assert board.process is not None
        pid = board.process.pid
        await self.until("ready", lambda: self.witness.shown == (pid, "ready"))
        await self.until("what it is", lambda: self.measured_at_unix_s() is not None)
        return pid

    def measured_at_unix_s(self) -> float | None:
        """When the machine was measured whose profile is believed."""
        return self.witness.profile.measured_unix_s if self.witness.profile else None

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        for _ in range(int(PATIENCE_S / 0.02)):
            if holds():
                return
            await asyncio.sleep(0.02)
        logs = "\n".join(board.log.read_text()[-4000:] for board in (self.first, self.second) if board.log.exists())
        raise AssertionError(f"{what} does not come: {self.witness.shown} {self.witness.distrusted}\n{logs}")


@contextlib.asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    secured = Secured(tmp_path)
    secured.enroll(device("one"))
    with secured.running():
        async with FaultProxy(secured.port) as proxy:
            made = World(tmp_path, secured, proxy)
            async with made.witness.listening(secured):
                try:
                    yield made
                finally:
                    made.first.end()
                    made.second.end()


async def test_the_newcomer_gives_way_and_the_one_that_was_there_is_believed_as_before(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        pid = await here.ready(here.first)
        known = here.measured_at_unix_s()
        here.second.start()
        newcomer = here.second.process
        assert newcomer is not None
        assert await asyncio.to_thread(newcomer.wait, PATIENCE_S) != 0
        assert f"device id 'one' is in use by another agent (process {pid} on" in here.second.log.read_text()
        assert not here.second.state.joinpath("profile.json").exists()
        await here.until("the first one's word", lambda: here.witness.shown == (pid, "ready"))
        assert f"process {newcomer.pid} on" in here.first.log.read_text(), "whoever looks at this device finds out"

        # Both have a session later than the other's by now; after a short absence the first is believed still.
        heard = len(here.witness.states)
        here.proxy.cut()
        await here.until("the will", lambda: any(state.status == "lost" for state in here.witness.states[heard:]))
        await here.until("the first one's return", lambda: here.witness.shown == (pid, "ready"))
        assert here.measured_at_unix_s() == known
        assert here.witness.distrusted == []


async def test_one_that_was_away_while_another_took_its_id_is_believed_again_with_its_profile(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        pid = await here.ready(here.first)
        known = here.measured_at_unix_s()
        here.proxy.refuse()
        await here.until("the will", lambda: here.witness.shown == (pid, "lost"))
        await here.ready(here.second)
        await here.until("the second one's profile", lambda: here.measured_at_unix_s() not in (None, known))
        here.proxy.heal()
        newcomer = here.second.process
        assert newcomer is not None
        assert await asyncio.to_thread(newcomer.wait, PATIENCE_S) != 0
        assert f"device id 'one' is in use by another agent (process {pid} on" in here.second.log.read_text()
        await here.until("the first one's word", lambda: here.witness.shown == (pid, "ready"))
        await here.until("the first one's profile", lambda: here.measured_at_unix_s() == known)


async def test_one_whose_id_another_had_and_left_is_believed_again_with_its_profile(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        pid = await here.ready(here.first)
        known = here.measured_at_unix_s()
        here.proxy.refuse()
        await here.until("the will", lambda: here.witness.shown == (pid, "lost"))
        stopped = await here.ready(here.second)
        await here.until("the second one's profile", lambda: here.measured_at_unix_s() not in (None, known))
        here.second.end()
        await here.until("the second one's will", lambda: here.witness.shown == (stopped, "lost"))
        here.proxy.heal()
        await here.until("the first one's word", lambda: here.witness.shown == (pid, "ready"))
        await here.until("the first one's profile", lambda: here.measured_at_unix_s() == known)


async def test_one_whose_objection_comes_late_is_believed_again_with_its_profile(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        pid = await here.ready(here.first)
        known = here.measured_at_unix_s()
        here.proxy.black_hole()
        await here.ready(here.second)
        await here.until("the second one's profile", lambda: here.measured_at_unix_s() not in (None, known))
        here.proxy.heal()
        await here.until("the first one's word", lambda: here.witness.shown == (pid, "ready"))
        await here.until("the first one's profile", lambda: here.measured_at_unix_s() == known)
        newcomer = here.second.process
        assert newcomer is not None
        assert await asyncio.to_thread(newcomer.wait, PATIENCE_S) != 0
