"""Which announcements are news, and which say again what is in force."""

from __future__ import annotations

import msgspec

from edgefed.agent.announcements import Announcements
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
