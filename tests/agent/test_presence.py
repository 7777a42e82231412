"""Who has a device id: agents that come, go, come at once, and lose sight of each other."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import msgspec
import pytest

from edgefed.agent import presence as presence_module
from edgefed.agent.presence import Presence
from edgefed.errors import DeviceIdTaken
from edgefed.protocol.messages.retained import DeviceState, decode_device_state
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message
from edgefed.transport.in_memory import InMemoryBroker, InMemoryTransport

TOPICS = Topics("barn")
TOPIC = TOPICS.device("a", "state")


@pytest.fixture(autouse=True)
def short_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory an objection takes microseconds, not a network's milliseconds."""
    monkeypatch.setattr(presence_module, "_CLAIM_S", 0.2)


class Agent:
    """A presence and whoever hands it what arrives, as the supervisor does."""

    def __init__(self, broker: InMemoryBroker, name: str, *, since_unix_s: float) -> None:
        self.presence = Presence(TOPICS, "a")
        self.presence.state = msgspec.structs.replace(self.presence.state, since_unix_s=since_unix_s, instance=name)
        self.transport: InMemoryTransport = broker.connect(name, self.presence.will)
        self.published = 0
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.transport.events():
            if isinstance(event, Message):
                self.published += 1
                await self.presence.heard(self.transport, event.payload)

    async def claim(self) -> bool:
        """Returns whether this agent has the id."""
        try:
            await self.presence.claim(self.transport)
        except DeviceIdTaken:
            await self.leave()
            return False
        await self.presence.show(self.transport, "ready")
        return True

    async def leave(self) -> None:
        await self.transport.close()
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError, DeviceIdTaken):
            await self._reader

    async def gave_way(self) -> bool:
        """Returns whether it found out, while at work, that an earlier one has the id."""
        await settled()
        if not self._reader.done():
            return False
        assert isinstance(self._reader.exception(), DeviceIdTaken)
        await self.leave()
        return True


async def settled() -> None:
    """Lets everything that is on its way arrive and be answered."""
    for _ in range(200):
        await asyncio.sleep(0)


async def shown(broker: InMemoryBroker) -> DeviceState:
    """Returns what somebody who looks now finds retained."""
    async with broker.connect(f"passer-by-{uuid.uuid4()}") as passer_by:
        await passer_by.subscribe(TOPIC)
        async for event in passer_by.events():
            if isinstance(event, Message):
                return decode_device_state(event.payload)
    raise AssertionError("nothing is retained")


async def test_an_agent_alone_takes_its_id_and_shows_what_it_does() -> None:
    broker = InMemoryBroker()
    agent = Agent(broker, "alone", since_unix_s=1.0)
    assert await agent.claim()
    state = await shown(broker)
    assert (state.status, state.instance) == ("ready", "alone")
    await agent.presence.show(agent.transport, "training", round=3)
    await agent.presence.progress(agent.transport, step=5, steps=16, loss=2.5)
    await agent.presence.publish(agent.transport)
    state = await shown(broker)
    assert (state.status, state.round, state.step, state.steps, state.loss) == ("training", 3, 5, 16, 2.5)
    await agent.presence.show(agent.transport, "ready")
    state = await shown(broker)
    assert (state.step, state.loss) == (0, None), "what is not named falls back"
    await agent.leave()


async def test_progress_is_not_published_at_every_step() -> None:
    broker = InMemoryBroker()
    agent = Agent(broker, "alone", since_unix_s=1.0)
    await agent.presence.show(agent.transport, "training", round=3)
    await agent.transport.subscribe(TOPIC)
    for step in range(100):
        await agent.presence.progress(agent.transport, step=step)
    await settled()
    assert agent.published < 100
    assert agent.presence.state.step == 99
    await agent.leave()


async def test_a_newcomer_gives_way_and_names_the_one_that_stays() -> None:
    broker = InMemoryBroker()
    old = Agent(broker, "old", since_unix_s=1.0)
    assert await old.claim()
    await old.presence.show(old.transport, "training", round=2)
    new = Agent(broker, "new", since_unix_s=2.0)
    with pytest.raises(DeviceIdTaken, match=rf"device id 'a' .* \(process {old.presence.state.pid} on"):
        await new.presence.claim(new.transport)
    await new.leave()
    assert not await old.gave_way()
    state = await shown(broker)
    assert (state.instance, state.status, state.objects_to) == (
        "old",
        "training",
        "",
    )
    await old.leave()


async def test_the_old_one_stays_even_if_the_newcomers_clock_is_behind() -> None:
    broker = InMemoryBroker()
    old = Agent(broker, "old", since_unix_s=1_700_000_000.0)
    assert await old.claim()
    new = Agent(broker, "new", since_unix_s=5.0)  # a board without a clock, just booted
    assert not await new.claim()
    assert not await old.gave_way()
    assert (await shown(broker)).instance == "old"
    await old.leave()


@pytest.mark.parametrize(
    ("status", "since_unix_s"), [("init", 1.0), ("ready", 1.0), ("training", 9.0), ("disconnected", 1.0), ("lost", 9.0)]
)
async def test_what_a_dead_process_left_behind_blocks_nobody(status: str, since_unix_s: float) -> None:
    broker = InMemoryBroker()
    cleaner = broker.connect("someone")
    left_over = DeviceState(status=status, instance="dead", since_unix_s=since_unix_s)  # type: ignore[arg-type]
    await cleaner.publish(TOPIC, encode(left_over), retain=True)
    agent = Agent(broker, "new", since_unix_s=5.0)
    assert await agent.claim()
    state = await shown(broker)
    assert (state.instance, state.status) == ("new", "ready")
    await agent.leave()
    await cleaner.close()


@pytest.mark.parametrize("payload", [b"", b"{", b'{"status":"ready"}', b"\xff" * 100])
async def test_nonsense_on_the_topic_blocks_nobody(payload: bytes) -> None:
    broker = InMemoryBroker()
    agent = Agent(broker, "new", since_unix_s=5.0)
    await agent.transport.publish(TOPIC, payload, retain=True)
    assert await agent.claim()
    await agent.leave()


@pytest.mark.parametrize("seed", range(4))
async def test_of_several_that_start_at_once_exactly_one_stays(seed: int) -> None:
    broker = InMemoryBroker(seed=seed, delay_s=(0.0, 0.02), duplication=0.2)
    agents = [Agent(broker, f"agent-{number}", since_unix_s=float(number // 2)) for number in range(4)]
    stayed = await asyncio.gather(*(agent.claim() for agent in agents))
    assert stayed == [True, False, False, False], "the earliest, and of two equally early ones the first by name"
    await asyncio.sleep(0.1)
    assert not await agents[0].gave_way()
    assert (await shown(broker)).instance == "agent-0"
    await agents[0].leave()


async def two_that_lost_sight_of_each_other(broker: InMemoryBroker) -> tuple[Agent, Agent]:
    """The older one's connection is down while the newer one claims the id."""
    old = Agent(broker, "old", since_unix_s=1.0)
    assert await old.claim()
    broker.drop("old")
    new = Agent(broker, "new", since_unix_s=2.0)
    assert await new.claim()
    return old, new


async def test_an_old_one_whose_connection_comes_back_gets_its_id_back() -> None:
    broker = InMemoryBroker()
    old, new = await two_that_lost_sight_of_each_other(broker)
    broker.restore("old")
    assert await new.gave_way()
    assert not await old.gave_way()
    state = await shown(broker)
    assert (state.instance, state.objects_to) == ("old", "")
    await old.leave()


async def test_two_that_both_have_the_id_do_not_object_for_ever() -> None:
    broker = InMemoryBroker()
    old, new = await two_that_lost_sight_of_each_other(broker)
    broker.restore("old")
    await settled()
    heard = old.published
    assert heard < 20
    await settled()
    assert old.published == heard
    assert await new.gave_way()
    await old.leave()


async def test_the_will_of_a_short_absence_does_not_stay() -> None:
    broker = InMemoryBroker()
    agent = Agent(broker, "alone", since_unix_s=1.0)
    assert await agent.claim()
    broker.drop("alone")
    assert (await shown(broker)).status == "lost"
    broker.restore("alone")
    await settled()
    assert (await shown(broker)).status == "ready"
    await agent.leave()


@pytest.mark.parametrize("status", ["disconnected", "lost"])
async def test_the_last_word_of_another_does_not_stand_for_this_device(status: str) -> None:
    broker = InMemoryBroker()
    agent = Agent(broker, "mine", since_unix_s=1.0)
    assert await agent.claim()
    other = broker.connect("other")
    farewell = DeviceState(status=status, instance="other", since_unix_s=2.0)  # type: ignore[arg-type]
    await other.publish(TOPIC, encode(farewell), retain=True)
    await settled()
    state = await shown(broker)
    assert (state.instance, state.status) == ("mine", "ready")
    await agent.leave()
    await other.close()
