"""A worker that memory does not hold: the plan goes down by a notch, and stays there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgefed.planner.history import decode_history
from tests.faults.cases import nothing
from tests.faults.fleet import Account, Mischief, federate
from tests.faults.small_memory import almost_twice, memory_group

pytestmark = [pytest.mark.federation, pytest.mark.broker]

FITTING = 2  # examples of a micro-batch


def said_by(directory: Path, device: str) -> list[str]:
    return (directory / f"{device}.log").read_text().splitlines()


def check(account: Account, directory: Path, *, says: str) -> None:
    """Every update counts once, and device `one` has lowered its plan in round 1 until memory held it."""
    assert (account.lost, account.counted_twice, account.left_over) == (0, 0, ())
    assert sorted(account.merged) == [(device, round_) for device in ("one", "two") for round_ in (1, 2, 3)]
    lowered = [line for line in said_by(directory, "one") if "planning a notch lower" in line]
    assert lowered
    assert [line for line in lowered if "round 1: " not in line or says not in line] == [], "later rounds know"
    outcomes = decode_history((directory / "one" / "plans.json").read_bytes()).outcomes
    failed = [one for one in outcomes if one.peak_bytes is None]
    assert len(failed) == len(lowered)
    assert all(int(one.plan.partition("micro-batch ")[2].partition(",")[0]) > FITTING for one in failed)
    takes = [one.decided_bytes for one in failed]
    assert takes == sorted(set(takes), reverse=True), "each plan takes less than the one before"
    assert not [line for line in said_by(directory, "two") if "planning a notch lower" in line]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Account | BaseException]]:
    """A federation for each way of running out of memory, at the same time, by the way's name."""
    scratch = tmp_path_factory.mktemp("memory")

    async def play(kinds: dict[str, str]) -> list[Account | BaseException]:
        playing = (
            federate(scratch / name, nothing, mischief=Mischief("one", kind, FITTING)) for name, kind in kinds.items()
        )
        return await asyncio.gather(*playing, return_exceptions=True)

    with memory_group(almost_twice(FITTING)) as group:
        kinds = {"pretended": "hungry", "limit": "glutton"} | ({"group": f"glutton:{group}"} if group else {})
        accounts = asyncio.run(play(kinds))
    return {name: (scratch / name, account) for name, account in zip(kinds, accounts, strict=True)}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pretended", "the worker was killed (signal 9), as the kernel does when memory runs out"),
        ("limit", "Unable to allocate"),
        ("group", "the worker was killed (signal 9), as the kernel does when memory runs out"),
    ],
)
def test_a_plan_that_memory_does_not_hold_is_lowered_and_remembered(
    played: dict[str, tuple[Path, Account | BaseException]], name: str, says: str
) -> None:
    if name not in played:
        pytest.skip("no control group with a limit of memory can be made here; the other ways need none")
    directory, account = played[name]
    if isinstance(account, BaseException):
        raise account
    check(account, directory, says=says)
