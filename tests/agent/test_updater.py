"""What an agent says to a release that it will not take, and what it does with one that was handed over before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgefed.agent.options import AgentOptions
from edgefed.agent.updater import Updater
from edgefed.data.source import DataSource
from edgefed.devices.release_state import ReleaseState
from edgefed.protocol.messages.down import ReleaseOffered
from edgefed.protocol.messages.up import UpMessage
from edgefed.transport.in_memory import InMemoryBroker
from edgefed.transport.options import Broker
from edgefed.updates.places import Home, incoming
from edgefed.updates.record import Record, write_record
from edgefed.updates.release import Outcome, Result

OFFER = ReleaseOffered(run="run", rollout="wish", sha256="a" * 64, size_bytes=1000, name="spring", number=7)
SIGNED = Broker(tls_ca="ca.pem", tls_certificate="certificate.pem", tls_key="key.pem", signed=True)


class Agent:
    """An updater, and what it published."""

    def __init__(self, directory: Path, *, broker: Broker = SIGNED, home: Home | None = None) -> None:
        options = AgentOptions(device="one", fleet="test", data=DataSource(path="data.jsonl"), broker=broker)
        self.asked: list[UpMessage] = []
        self.published: list[ReleaseState | None] = []
        self.updater = Updater(
            options,
            InMemoryBroker().connect("one"),
            directory / "state",
            home,
            send=self._send,
            publish=self._publish,
            idle=lambda: True,
        )

    async def _send(self, message: UpMessage) -> None:
        self.asked.append(message)

    async def _publish(self) -> None:
        self.published.append(self.updater.state)

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(1000):
            if holds():
                return
            await asyncio.sleep(0.01)
        pytest.fail("it does not come")

    async def says(self, state: str) -> str:
        """Returns the reason, once it says that this has become of the offer."""
        await self.until(lambda: self.updater.state is not None and self.updater.state.state == state)
        assert self.updater.state is not None
        await self.until(lambda: self.published[-1:] == [self.updater.state])
        await self.updater.end()
        return self.updater.state.reason


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.updates.mkdir(parents=True)
    return made


def result(outcome: Outcome, *, at_s: float = 5.0, **changes: Any) -> Result:
    settings = {"file": f"{OFFER.sha256}.bundle", "began_unix_s": at_s, "ended_unix_s": at_s, **changes}
    return Result(bundle=OFFER.sha256, outcome=outcome, **settings)


async def test_without_signatures_no_code_is_taken(tmp_path: Path, home: Home) -> None:
    agent = Agent(tmp_path, broker=Broker(), home=home)
    agent.updater.hear(OFFER)
    assert "code is never installed unsigned" in await agent.says("refused")
    assert not agent.asked


async def test_without_an_installer_no_code_is_taken(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.updater.hear(OFFER)
    assert "there is no installer" in await agent.says("refused")
    assert not agent.asked


async def test_what_the_disk_does_not_hold_is_not_begun(tmp_path: Path, home: Home) -> None:
    agent = Agent(tmp_path, home=home)
    agent.updater.hear(msgspec.structs.replace(OFFER, size_bytes=1 << 60))
    assert "bytes are free on the disk" in await agent.says("refused")
    assert not agent.asked


async def test_a_record_that_is_damaged_is_told(tmp_path: Path, home: Home) -> None:
    home.record.write_text("{")
    agent = Agent(tmp_path, home=home)
    agent.updater.hear(OFFER)
    assert "record.json cannot be read" in await agent.says("refused")


@pytest.mark.parametrize("outcome", ["installed", "rolled-back", "refused"])
async def test_what_came_of_the_same_bundle_before_is_told_again(tmp_path: Path, home: Home, outcome: Outcome) -> None:
    write_record(home, Record(result=result(outcome, reason="so it was")))
    agent = Agent(tmp_path, home=home)
    agent.updater.hear(OFFER)
    assert await agent.says(outcome) == "so it was"
    assert not agent.asked


async def test_what_may_be_tried_again_is_fetched_again(tmp_path: Path, home: Home) -> None:
    write_record(home, Record(result=result("refused", may_retry=True)))
    agent = Agent(tmp_path, home=home)
    agent.updater.hear(OFFER)
    await agent.until(lambda: bool(agent.asked))
    agent.updater.hear(OFFER)  # said again, because the answer took its time
    await agent.says("fetching")
    assert len(agent.asked) == 1


@pytest.mark.parametrize("ended_at_s", [6.0, 4.0], ids=["later", "earlier, because the clock was put back"])
async def test_a_new_agent_says_what_came_of_what_the_old_one_handed_over(
    tmp_path: Path, home: Home, ended_at_s: float
) -> None:
    write_record(home, Record(result=result("refused", at_s=5.0, may_retry=True)))
    kept = {
        "offer": msgspec.to_builtins(OFFER),
        "state": {"rollout": "wish", "bundle": OFFER.sha256, "name": "spring", "number": 7, "state": "delivered"},
        "result_before_unix_s": 5.0,
    }
    updates = tmp_path / "state" / "updates"
    (updates / "arriving").mkdir(parents=True)
    (updates / "offer.json").write_bytes(msgspec.json.encode(kept))
    (updates / "arriving" / OFFER.sha256).write_bytes(b"killed before it was moved")
    agent = Agent(tmp_path, home=home)
    assert agent.updater.state is not None
    assert agent.updater.state.state == "delivered"
    agent.updater.begin()
    await agent.until(lambda: any(incoming(tmp_path / "state").glob("*.bundle")))
    assert agent.updater.state.state == "delivered", "the result there is an older one"
    write_record(home, Record(result=result("installed", at_s=ended_at_s)))
    assert await agent.says("installed") == ""


async def test_what_was_handed_over_is_waited_for_again_after_the_wait_went_wrong(
    tmp_path: Path, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    updates = tmp_path / "state" / "updates"
    updates.mkdir(parents=True)
    state = {"rollout": "wish", "bundle": OFFER.sha256, "name": "spring", "number": 7, "state": "delivered"}
    (updates / "offer.json").write_bytes(msgspec.json.encode({"offer": msgspec.to_builtins(OFFER), "state": state}))
    home.record.write_text("{")
    agent = Agent(tmp_path, home=home)
    agent.updater.begin()
    await agent.until(lambda: "record.json cannot be read" in caplog.text)
    write_record(home, Record(result=result("installed")))
    agent.updater.hear(OFFER)
    assert await agent.says("installed") == ""


async def test_a_later_offer_takes_the_place_of_an_earlier_one(tmp_path: Path, home: Home) -> None:
    agent = Agent(tmp_path, home=home)
    agent.updater.hear(OFFER)
    await agent.until(lambda: len(agent.asked) == 1)
    left = tmp_path / "state" / "updates" / "arriving"
    agent.updater.hear(msgspec.structs.replace(OFFER, rollout="another", sha256="b" * 64))
    await agent.until(lambda: len(agent.asked) == 2)
    assert not [path for path in left.iterdir() if path.name.startswith("a" * 64)]
    await agent.says("fetching")
    assert agent.updater.state is not None
    assert agent.updater.state.rollout == "another"
