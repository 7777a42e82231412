"""Which announcements are news, and which say again what is in force."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from edgefed.agent.announcements import Announcements, RoundIsOver
from edgefed.protocol.messages.down import Duty, Standing
from edgefed.protocol.messages.retained import FederationFinished, RoundOpen


async def test_only_the_round_in_force_is_announced_again(announced: RoundOpen) -> None:
    board = Announcements()
    assert not board.post(announced)
    assert board.post(announced)
    assert not board.post(msgspec.structs.replace(announced, round=announced.round + 1))
    assert not board.post(msgspec.structs.replace(announced, run="another"))
    end = FederationFinished(run="another", round=3)
    assert not board.post(end)
    assert not board.post(end)
    assert await board.next() == end


def standing(announced: RoundOpen, duty: Duty) -> Standing:
    return Standing(run=announced.run, duty=duty, reason="" if duty == "active" else f"{duty} by the operator")


async def test_who_is_held_is_told_why_and_looks_again_when_it_is_not(announced: RoundOpen) -> None:
    board = Announcements()
    board.stand(standing(announced, "paused"))
    board.post(announced)
    assert await board.next() == announced
    assert board.why_held(announced.run) == "paused by the operator"
    assert board.why_held("another-run") == ""
    board.stand(standing(announced, "paused"))
    waiting = asyncio.ensure_future(board.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    board.stand(standing(announced, "active"))
    assert await waiting == announced
    assert board.why_held(announced.run) == ""


async def test_what_was_begun_ends_for_who_is_removed_and_not_for_who_is_paused(announced: RoundOpen) -> None:
    board = Announcements()
    board.post(announced)
    for watched in (board.while_open, board.while_run):
        board.stand(standing(announced, "active"))
        work = asyncio.get_running_loop().create_future()
        watching = asyncio.ensure_future(watched(announced, work))
        for duty in ("paused", "draining"):
            board.stand(standing(announced, duty))
            await asyncio.sleep(0.01)
            assert not watching.done()
        board.stand(standing(announced, "removed"))
        with pytest.raises(RoundIsOver, match="removed by the operator"):
            await watching
