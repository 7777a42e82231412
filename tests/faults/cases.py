"""The kinds of trouble that a federation must live through, one function each; the tests and the benchmark run them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from edgefed.errors import FleetTaken, StoreError
from tests.faults.fleet import PATIENCE_S, Account, Fleet, Mischief, federate
from tests.federation.test_aggregator import Run

__all__ = ["CASES", "Case", "broker_gone", "play"]

LATE = "expected_devices = 2\nquorum = 1\ngather_s = 1\ndeadline_s = 2\n"


@dataclass(frozen=True)
class Case:
    """One kind of trouble.

    Attributes:
        what: happens, in words.
        trouble: makes it happen.
        everybody: whether every update must be in the sum of its own round, so that the result is known to a bit.
        selection: lines of `[selection]` that it needs; empty for everybody in every round.
        mischief: of a worker.
        persistence: whether the broker keeps sessions and retained messages over a restart.
        in_tests: whether the tests run it, and not only the benchmark.
        small_disk_of: who works on a small disk of its own: `run` (the aggregator) or a device; it takes the right to
            mount one.
    """

    what: str
    trouble: Callable[[Fleet], Awaitable[None]]
    everybody: bool = True
    selection: str = ""
    mischief: Mischief | None = None
    persistence: bool = False
    in_tests: bool = True
    small_disk_of: str = ""


async def play(case: Case, directory: Path) -> Account:
    """Runs a federation through a case in a new directory, and returns the account. Raises as `federate`."""
    options = {"selection": case.selection} if case.selection else {}
    return await federate(
        directory,
        case.trouble,
        mischief=case.mischief,
        persistence=case.persistence,
        small_disk_of=case.small_disk_of,
        **options,
    )


async def nothing(fleet: Fleet) -> None:
    """Makes no trouble."""


async def _aggregator_killed(fleet: Fleet) -> None:
    for round_ in (1, 2, 3):
        await fleet.until_round(round_)
        fleet.restart_aggregator()
        await fleet.until_holding("one", round_)
        fleet.restart_aggregator()


async def _supervisor_killed(fleet: Fleet) -> None:
    agent = fleet.agents["one"]
    await fleet.until("work of round 1", lambda: "step" in agent.log.read_text())
    agent.kill()
    agent.start()
    await fleet.until_holding("one", 2)
    agent.kill()
    agent.start()


async def _worker_killed(fleet: Fleet) -> None:
    await fleet.until_round(2)
    await asyncio.sleep(0.2)
    fleet.agents["one"].kill_worker()


async def _broker_restarted(fleet: Fleet) -> None:
    for round_ in (1, 3):
        await fleet.until_holding("one", round_)
        fleet.broker.kill()
        fleet.broker.restart()


async def _broker_stopped_and_started(fleet: Fleet) -> None:
    for round_ in (1, 3):
        await fleet.until_holding("one", round_)
        fleet.broker.stop()
        fleet.broker.restart()


def broker_gone(gone_s: float) -> Callable[[Fleet], Awaitable[None]]:
    """Returns the trouble of a broker that is away for so long."""

    async def trouble(fleet: Fleet) -> None:
        await fleet.until_round(2)
        fleet.broker.kill()
        await asyncio.sleep(gone_s)
        fleet.broker.restart()

    return trouble


async def _connections_cut(fleet: Fleet) -> None:
    while "the federation is over" not in fleet.run.log.read_text():
        await asyncio.sleep(3.0)
        fleet.proxy.cut()


async def _black_hole(fleet: Fleet) -> None:
    await fleet.until_round(2)
    fleet.proxy.black_hole()
    await asyncio.sleep(12.0)  # longer than both sides wait for a sign of life
    fleet.proxy.heal()


async def _half_open(fleet: Fleet) -> None:
    await fleet.until_holding("one", 1)
    fleet.proxy.half_open()


async def _asleep(fleet: Fleet) -> None:
    """One device works on round 1 until all others are in round 3, with no connection; then it delivers."""
    agent = fleet.agents["one"]
    await fleet.until("work of round 1", agent.mischief_done.exists)
    await fleet.until_round(3)
    agent.mischief_done.unlink()


async def _second_aggregator(fleet: Fleet) -> None:
    """Another federation is started in the fleet, in a directory of its own."""
    await fleet.until_round(2)
    directory = fleet.directory / "second"
    directory.mkdir()
    config = fleet.run.config.read_text().replace(str(fleet.run.directory), str(directory / "run"))
    second = Run(directory, config)
    try:
        code = await asyncio.to_thread(second.start().wait)
        assert code == FleetTaken.exit_code, second.log.read_text()
    finally:
        second.end()


async def _diverged(fleet: Fleet) -> None:
    """Killed between the decision to give the round up, which is in the journal, and what is done about it."""
    await fleet.until("the end of round 2", lambda: "round 2 is given up" in fleet.run.log.read_text())
    fleet.restart_aggregator()
    await fleet.until_round(3)
    status = (await asyncio.to_thread(fleet.status))["aggregator"]
    assert status["given_up"] == 1, status
    assert status["gave_up"].startswith("round 2: the adapter has diverged"), status


async def _device_disk_full(fleet: Fleet) -> None:
    """Full while the worker trains, so that its update cannot be written; and full when the next round is announced."""
    agent, disk = fleet.agents["one"], fleet.disk
    assert disk is not None
    await fleet.until("work of round 1", lambda: "step" in agent.log.read_text())
    disk.fill()
    await fleet.until("a word of the full disk", lambda: "the disk takes no more" in agent.log.read_text())
    await _shows_a_full_disk(fleet, "one", 1)
    assert _updates(agent.state) == [], "half an update was left"
    disk.free()
    await fleet.until_holding("one", 2)
    disk.fill()
    await fleet.until_round(3)
    await _shows_a_full_disk(fleet, "one", 3)
    disk.free()


async def _shows_a_full_disk(fleet: Fleet, device: str, round_: int) -> None:
    for _ in range(30):
        state = (await asyncio.to_thread(fleet.status))["devices"][device]["state"]
        if (state["status"], state["round"]) == ("sleeping", round_) and "make room" in state["note"]:
            return
    raise AssertionError(f"the status does not tell of the full disk: {state}")


def _updates(state: Path) -> list[Path]:
    return [path for path in (state / "runs").glob("*/*") if "update" in path.name]


async def _aggregator_disk_full(fleet: Fleet) -> None:
    """Full while devices deliver, and full still when the aggregator is started again."""
    run, disk = fleet.run, fleet.disk
    assert disk is not None
    fleet.may_end_with.add(StoreError.exit_code)
    for round_ in (1, 3):
        await fleet.until_holding("one", round_)
        disk.fill()
        await _ends_for_want_of_room(fleet)
        run.start()
        await _ends_for_want_of_room(fleet)
        disk.free()
        run.start()


async def _ends_for_want_of_room(fleet: Fleet) -> None:
    run = fleet.run
    assert run.process is not None
    assert await asyncio.to_thread(run.process.wait, PATIENCE_S) == StoreError.exit_code, run.log.read_text()
    log = run.log.read_text()
    assert "make room and start the aggregator again" in log.splitlines()[-1], log
    assert "Traceback" not in log, log
    left = (await asyncio.to_thread(fleet.status))["aggregator"]
    assert left["status"] == "stopped", left
    assert "make room" in left["note"], left


CASES = {
    "undisturbed": Case("nothing", nothing),
    "aggregator": Case("the aggregator is killed twice in every round", _aggregator_killed),
    "supervisor": Case("a supervisor is killed while its worker trains, and while it delivers", _supervisor_killed),
    "worker": Case("a worker is killed", _worker_killed, in_tests=False),
    "hang": Case("a worker hangs", nothing, mischief=Mischief("one", "hang", 2)),
    "garbage": Case("a worker writes garbage", nothing, mischief=Mischief("one", "garbage", 2), in_tests=False),
    "broker": Case("the broker is killed and forgets everything", _broker_restarted),
    "broker-keeps": Case(
        "the broker is restarted and remembers", _broker_stopped_and_started, persistence=True, in_tests=False
    ),
    "broker-gone": Case("the broker is gone for 8 s", broker_gone(8.0), in_tests=False),
    "cuts": Case("every connection of the agents is cut every three seconds", _connections_cut),
    "black-hole": Case("nothing gets through for 12 s", _black_hole, in_tests=False),
    "half-open": Case("the broker ends connections, and the agents do not notice", _half_open, in_tests=False),
    "second": Case("another aggregator is started for the fleet", _second_aggregator, in_tests=False),
    "device-full": Case("a device's disk is full, twice", _device_disk_full, small_disk_of="one"),
    "aggregator-full": Case("the aggregator's disk is full, twice", _aggregator_disk_full, small_disk_of="run"),
    "diverged": Case(
        "the adapter is found to have diverged, and the aggregator is killed while it goes back",
        _diverged,
        everybody=False,
        mischief=Mischief("one", "worse", 2),
    ),
    "asleep": Case(
        "a device comes back two rounds later with its old update",
        _asleep,
        everybody=False,
        selection=LATE,
        mischief=Mischief("one", "dawdle", 1),
    ),
}
