"""Federations of real processes in trouble: they end by themselves, and every acknowledged update is in one sum.

The rest of the cases are in `benchmarks/faults`: they take longer, and go the same ways through the code.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.cases import CASES, Case, play
from tests.faults.fleet import Account
from tests.faults.small_disk import may_mount

pytestmark = [pytest.mark.broker, pytest.mark.federation]

_AT_ONCE = 8
_HERE = {name: case for name, case in CASES.items() if case.in_tests}


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Account | BaseException]:
    """All cases, some at a time: each waits more than it works."""
    directory = tmp_path_factory.mktemp("cases")
    mounts = may_mount(directory)
    playable = {name: case for name, case in _HERE.items() if mounts or not case.small_disk_of}

    async def play_all() -> dict[str, Account | BaseException]:
        turn = asyncio.Semaphore(_AT_ONCE)

        async def play_in_turn(name: str, case: Case) -> Account:
            async with turn:
                return await play(case, directory / name)

        played = await asyncio.gather(*(play_in_turn(*one) for one in playable.items()), return_exceptions=True)
        return dict(zip(playable, played, strict=True))

    return asyncio.run(play_all())


@pytest.mark.parametrize("name", _HERE)
def test_a_federation_lives_through_it(accounts: dict[str, Account | BaseException], name: str) -> None:
    if name not in accounts:
        pytest.skip("small disks cannot be mounted here; tests/faults/test_full_disk.py limits files instead")
    account, undisturbed = accounts[name], accounts["undisturbed"]
    if isinstance(account, BaseException):
        raise account
    assert (account.lost, account.counted_twice) == (0, 0)
    assert account.left_over == ()
    assert account.acknowledged <= account.answered
    if CASES[name].everybody:
        assert isinstance(undisturbed, Account)
        assert account.merged == undisturbed.merged == {(d, r): 1 for d in ("one", "two") for r in (1, 2, 3)}
        assert account.adapter == undisturbed.adapter


def test_what_was_trained_on_a_diverged_adapter_is_in_no_sum(accounts: dict[str, Account | BaseException]) -> None:
    account = accounts["diverged"]
    assert isinstance(account, Account)
    assert account.excluded == {("one", 2), ("two", 2)}
    assert account.merged == {(device, round_): 1 for device in ("one", "two") for round_ in (1, 3)}


def test_an_old_update_counts_late(accounts: dict[str, Account | BaseException]) -> None:
    account = accounts["asleep"]
    assert isinstance(account, Account)
    assert ("one", 1) in account.acknowledged
