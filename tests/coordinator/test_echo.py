"""The aggregator's answers to pings: as much as was asked for, and never more than is allowed."""

from __future__ import annotations

import pytest

from edgefed.coordinator.echo import Echo
from edgefed.protocol.messages.down import DownMessage, Pong
from edgefed.protocol.messages.up import Ping

KIB = 1 << 10


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Heard:
    """An echo, and what it has told whom."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pongs: list[tuple[str, Pong]] = []
        self.echo = Echo(self._tell, clock=self.clock)

    def _tell(self, device: str, message: DownMessage) -> None:
        assert isinstance(message, Pong)
        self.pongs.append((device, message))

    def ping(self, device: str = "a", *, nonce: str = "c0ffee", wanted: int = 0, sent: int = 0) -> Pong | None:
        before = len(self.pongs)
        self.echo.answer(device, Ping(nonce=nonce, sequence=7, answer_bytes=wanted, padding="x" * sent))
        return self.pongs[-1][1] if len(self.pongs) > before else None

    def answered(self, **ping: object) -> bool:
        pong = self.ping(**ping)  # type: ignore[arg-type]
        return pong is not None and not pong.refused


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.mark.parametrize("wanted", [0, 1, 96 * KIB, 256 * KIB])
def test_a_pong_has_what_the_ping_wanted(heard: Heard, wanted: int) -> None:
    pong = heard.ping(wanted=wanted)
    assert pong is not None
    assert (pong.nonce, pong.sequence, len(pong.padding), pong.refused) == ("c0ffee", 7, wanted, "")


def test_a_flood_is_answered_up_to_the_limit_then_once_with_a_word_then_not_at_all(heard: Heard) -> None:
    answers = [heard.ping(wanted=64 * KIB, sent=64 * KIB) for _ in range(200)]
    full = [pong for pong in answers if pong is not None and not pong.refused]
    refusals = [pong for pong in answers if pong is not None and pong.refused]
    assert 30 <= len(full) <= 32, "4 MiB, counted in both directions"
    assert len(refusals) == 1
    assert "4 MiB" in refusals[0].refused
    assert sum(len(pong.padding) for pong in full) <= 4 * KIB * KIB


def test_time_gives_the_allowance_back(heard: Heard) -> None:
    while heard.answered(wanted=128 * KIB):
        pass
    heard.clock.now_s += 30.0
    assert sum(heard.answered(wanted=128 * KIB) for _ in range(100)) == 31


def test_one_measurement_at_a_time(heard: Heard) -> None:
    assert heard.answered(nonce="aa")
    refusal = heard.ping(nonce="bb")
    assert refusal is not None
    assert "another measurement" in refusal.refused
    assert heard.ping(nonce="bb") is None, "it has been told"
    assert heard.answered(nonce="aa"), "the first one goes on"
    heard.clock.now_s += 2.0
    assert heard.answered(nonce="bb")


def test_devices_do_not_take_from_each_other_until_the_fleet_has_had_its_share(heard: Heard) -> None:
    while heard.answered(device="greedy", wanted=256 * KIB):
        pass
    assert heard.answered(device="modest", wanted=256 * KIB)
    answered = 0
    for number in range(40):
        while heard.answered(device=f"device-{number}", wanted=256 * KIB):
            answered += 1
    assert answered * 256 * KIB < 64 * KIB * KIB, "all together stay within the fleet's share"
    refusal = heard.ping(device="late", wanted=256 * KIB)
    assert refusal is not None
    assert "the fleet has measured" in refusal.refused


def test_a_crowd_of_invented_devices_does_not_fill_the_memory(heard: Heard) -> None:
    for number in range(5000):
        heard.ping(device=f"device-{number}")
    assert len(heard.echo._devices) == 4096
