"""Asking to take part: what counts as an answer, and what is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgefed.agent import joining as joining_module
from edgefed.agent.joining import Joining, NotSelected
from edgefed.protocol.messages.down import Accepted, Refused
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.up import Join, UpMessage

JOIN = Join(
    run="new", round=2, plan=Plan(rank=2, held_rank=2, quantization="fp32"), fingerprint="f", model="m", examples=5
)


def accepted(*, run: str = "new", round_: int = 2) -> Accepted:
    return Accepted(run=run, round=round_, remaining_s=60.0)


class Asking:
    """A device that asks, and what it has said."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[UpMessage] = asyncio.Queue()
        self.joining = Joining(self.said.put)

    @contextmanager
    def asked(self) -> Iterator[asyncio.Task[float]]:
        task = asyncio.create_task(self.joining.join(JOIN))
        yield task
        task.cancel()


async def test_only_the_answer_to_this_question_is_one() -> None:
    asking = Asking()
    asking.joining.hear(accepted())  # of an earlier process of the device, before it asked
    asking.joining.ask_again()
    with asking.asked() as task:
        assert await asking.said.get() == JOIN
        asking.joining.hear(accepted(run="old"))
        asking.joining.hear(Refused(run="new", round=1, reason="too late"))
        await asyncio.sleep(0.05)
        assert not task.done()
        assert asking.said.empty()
        asking.joining.hear(accepted())
        assert await task == 60.0


async def test_a_refusal_says_why() -> None:
    asking = Asking()
    with asking.asked() as task:
        await asking.said.get()
        asking.joining.hear(Refused(run="new", round=2, reason="enough devices"))
        with pytest.raises(NotSelected, match="enough devices"):
            await task


async def test_it_is_asked_again_when_the_round_is_announced_again_and_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking = Asking()
    with asking.asked() as task:
        await asking.said.get()
        asking.joining.ask_again()
        assert await asking.said.get() == JOIN
        asking.joining.hear(accepted())
        await task
    monkeypatch.setattr(joining_module, "_PATIENCE_S", 0.01)
    with asking.asked():
        for _ in range(3):
            assert await asking.said.get() == JOIN
