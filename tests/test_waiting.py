from __future__ import annotations

import asyncio

import pytest

from edgefed.waiting import wait_at_most


async def test_what_is_in_time_is_returned() -> None:
    assert await wait_at_most(asyncio.sleep(0, "done"), 10) == "done"


async def test_what_fails_in_time_fails() -> None:
    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await wait_at_most(fail(), 10)


async def test_what_is_late_is_ended() -> None:
    ended = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(asyncio.TimeoutError):
        await wait_at_most(slow(), 0.01)
    assert ended.is_set()


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_is_never_lost_however_close_it_comes_to_the_end(turns: int) -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(wait_at_most(event.wait(), 60))
    for _ in range(5):
        await asyncio.sleep(0)
    event.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    if waiting.cancel():
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        assert await waiting is True


async def test_whoever_is_cancelled_takes_what_it_waits_for_along() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        try:
            begun.set()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.set()

    waiting = asyncio.create_task(wait_at_most(stubborn(), 60))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
