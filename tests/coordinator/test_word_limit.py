from __future__ import annotations

from edgefed.coordinator.word_limit import WordLimit


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_minutes_messages_may_come_at_once_and_then_as_fast_as_they_are_allowed() -> None:
    clock = Clock()
    limit = WordLimit(60, clock=clock)
    assert [limit.hear("a") for _ in range(62)] == ["heard"] * 60 + ["silenced", "unheard"]
    clock.now_s += 2.0
    assert [limit.hear("a") for _ in range(3)] == ["heard", "heard", "unheard"]


def test_a_flood_is_told_of_once_a_minute() -> None:
    clock = Clock()
    limit = WordLimit(60, clock=clock)
    told = []
    for _ in range(1800):
        told.append(limit.hear("a"))
        clock.now_s += 0.1
    assert told.count("silenced") == 3  # in three minutes
    assert told.count("heard") in range(236, 243)  # a bucket full, and one each second


def test_one_device_does_not_silence_another() -> None:
    limit = WordLimit(60, clock=Clock())
    for _ in range(100):
        limit.hear("loud")
    assert limit.hear("quiet") == "heard"


def test_names_that_nobody_has_heard_of_do_not_fill_the_memory() -> None:
    limit = WordLimit(60, clock=Clock())
    for _ in range(60):
        limit.hear("loud")
    for number in range(4095):
        limit.hear(f"device-{number}")
    assert limit.hear("loud") == "silenced"  # still known
    for number in range(5000):
        limit.hear(f"other-{number}")
    assert limit.hear("device-1") == "heard"
    assert len(limit._accounts) <= 4096
