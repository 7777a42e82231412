from __future__ import annotations

import pytest

from edgefed.agent.plan import CannotTakePart
from edgefed.agent.work_times import OutOfTime, WorkTimes
from edgefed.protocol.messages.manifest import Plan

PLAN = Plan(rank=4, held_rank=4, quantization="fp32")
OTHER = Plan(rank=2, held_rank=4, quantization="fp32")


def test_work_that_was_never_done_may_begin() -> None:
    WorkTimes().check(PLAN, 0.0)


def test_work_begins_where_its_time_and_a_margin_are_left() -> None:
    times = WorkTimes()
    times.took(PLAN, 10.0)
    times.check(PLAN, 12.0)
    with pytest.raises(OutOfTime, match=r"11 s are left, and this device needed 12 s last time"):
        times.check(PLAN, 11.0)
    times.check(OTHER, 1.0)


def test_a_bad_moment_does_not_keep_a_device_out_for_ever() -> None:
    times = WorkTimes()
    times.took(PLAN, 60.0)
    refusals = 0
    while refusals < 100:
        try:
            times.check(PLAN, 30.0)
            break
        except CannotTakePart:
            refusals += 1
    assert 5 <= refusals <= 10
