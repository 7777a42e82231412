"""A worker that the kernel ends for want of memory: the plan goes down by a notch, and stays there."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.planner.history import decode_history
from tests.faults.cases import nothing
from tests.faults.fleet import Mischief, federate

pytestmark = [pytest.mark.federation, pytest.mark.broker]


async def test_a_plan_that_memory_does_not_hold_is_lowered_and_remembered(tmp_path: Path) -> None:
    account = await federate(tmp_path / "fleet", nothing, mischief=Mischief("one", "hungry", 2))
    assert (account.lost, account.counted_twice, account.left_over) == (0, 0, ())
    assert sorted(account.merged) == [(device, round_) for device in ("one", "two") for round_ in (1, 2, 3)]
    log = (tmp_path / "fleet" / "one.log").read_text()
    lowered = [line for line in log.splitlines() if "planning a notch lower" in line]
    assert lowered
    assert all("round 1: the worker was killed (signal 9)" in line for line in lowered), "later rounds know"
    outcomes = decode_history((tmp_path / "fleet" / "one" / "plans.json").read_bytes()).outcomes
    failed = [one for one in outcomes if one.peak_bytes is None]
    assert len(failed) == len(lowered)
    assert all(int(one.plan.partition("micro-batch ")[2].partition(",")[0]) > 2 for one in failed)
    takes = [one.decided_bytes for one in failed]
    assert takes == sorted(set(takes), reverse=True), "each plan takes less than the one before"
    assert "planning a notch lower" not in (tmp_path / "fleet" / "two.log").read_text()
