"""The aggregator's inbox: order, bounds, and what becomes of errors in the background."""

from __future__ import annotations

import asyncio

import pytest

from edgefed.coordinator.inbox import Broken, Inbox
from edgefed.coordinator.outbox import Outbox
from edgefed.errors import BrokerRefused
from edgefed.protocol.messages.down import Refused
from edgefed.protocol.topics import Topics
from edgefed.transport.in_memory import InMemoryBroker, InMemoryTransport

WORD = Refused(run="0" * 16, round=1, reason="")


async def test_nothing_waits_for_a_queue_that_nobody_empties_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The aggregator's last wait, after its loop: the broker may refuse the very last words."""

    async def refuse(*_: object, **__: object) -> None:
        raise BrokerRefused("not authorized")

    monkeypatch.setattr(InMemoryTransport, "publish", refuse)
    inbox = Inbox()
    outbox = Outbox(InMemoryBroker().connect("aggregator"), Topics("test"))
    inbox.spawn(outbox.run)
    outbox.tell("one", WORD)
    outbox.tell("two", WORD)
    with pytest.raises(BrokerRefused):
        await asyncio.wait_for(inbox.until(outbox.drained()), 30.0)
    await inbox.close()


async def test_what_the_background_brings_about_is_waited_for() -> None:
    inbox = Inbox()
    outbox = Outbox(InMemoryBroker().connect("aggregator"), Topics("test"))
    outbox.tell("one", WORD)
    inbox.spawn(outbox.run)
    await asyncio.wait_for(inbox.until(outbox.drained()), 30.0)
    await inbox.close()


async def test_an_error_in_the_background_is_taken_in_its_turn() -> None:
    async def fails() -> None:
        raise BrokerRefused("no")

    inbox = Inbox()
    inbox.spawn(fails)
    item = await inbox.next(30.0)
    assert isinstance(item, Broken)
    assert isinstance(item.error, BrokerRefused)
    assert await inbox.next(0.0) is None
    await inbox.close()
