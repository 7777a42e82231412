"""A fleet of real processes: Mosquitto, the aggregator, agents behind a fault proxy; and the account in the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgefed.config import read_federation
from edgefed.coordinator import rounds
from edgefed.coordinator.events import Merge
from edgefed.coordinator.round_state import State
from edgefed.coordinator.store import Store
from tests.faults.proxy import FaultProxy
from tests.faults.small_disk import SmallDisk, small_disk
from tests.federation.stand_in import FLEET, federation_toml, make_paper_model
from tests.federation.test_aggregator import Run
from tools.mosquitto import RunningMosquitto, running_mosquitto

__all__ = ["Account", "Fleet", "Mischief", "federate"]

PATIENCE_S = 120.0
_LOOK_S = 0.02
_DISK_BYTES = 8 << 20  # SQLite's log alone grows to 4 MiB
_DELAY_S = 0.05  # of every message to and from an agent: what a test waits for must last long enough to be seen

_AGENT = """\
device = "{name}"
fleet = "{fleet}"
state = "{directory}/{name}"
[broker]
host = "127.0.0.1"
port = {port}
keepalive_s = 5
[data]
path = "{directory}/data.jsonl"
[profile]
measure = "quick"
[limits]
max_rank = {rank}
quantization = "fp32"
[worker]
silence_s = 3.0
"""


@dataclass(frozen=True)
class Mischief:
    """What a worker does once, and in which round: see `quick_worker`."""

    device: str
    kind: str
    round: int


@dataclass(frozen=True)
class Account:
    """What became of the updates.

    Attributes:
        merged: (device, round) of every update in a sum, and how often it is in one.
        acknowledged: what agents were told counts, now or late.
        answered: what the store says counts, now or late.
        excluded: what was accepted for a round that was given up, and is in no sum.
        adapter: the final adapter's bytes.
        left_over: answers that agents still hold.
    """

    merged: Counter[tuple[str, int]]
    acknowledged: frozenset[tuple[str, int]]
    answered: frozenset[tuple[str, int]]
    excluded: frozenset[tuple[str, int]]
    adapter: bytes
    left_over: tuple[str, ...]

    @property
    def lost(self) -> int:
        """Updates that were acknowledged and are in no sum, though their round was not given up."""
        return len((self.acknowledged | self.answered) - self.merged.keys() - self.excluded)

    @property
    def counted_twice(self) -> int:
        """Updates that are in more than one sum, more than once in one, or in one though they were excluded."""
        return sum(count > 1 for count in self.merged.values()) + len(self.excluded & self.merged.keys())


class Agent:
    """An agent process and where it works."""

    def __init__(self, directory: Path, name: str, port: int, rank: int, mischief: Mischief | None) -> None:
        self.name = name
        self.state = directory / name
        self.log = directory / f"{name}.log"
        self.config = directory / f"{name}.toml"
        self.config.write_text(_AGENT.format(name=name, fleet=FLEET, directory=directory, port=port, rank=rank))
        self._mischief = [] if mischief is None else [mischief.kind, str(mischief.round)]
        self.mischief_done = directory / f"{name}.mischief"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "tests.faults.quick_agent", str(self.config), *self._mischief]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def kill(self) -> None:
        """Kills the supervisor; its worker ends when its input does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_worker(self) -> None:
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            child.send_signal(signal.SIGKILL)

    def acknowledged(self) -> set[tuple[str, int]]:
        """Which of its updates the aggregator said count, by round."""
        words = [line.partition("participation: round ")[2] for line in self.log.read_text().splitlines()]
        pairs = [word.partition(": ")[::2] for word in words if word]
        return {(self.name, int(round_)) for round_, said in pairs if said.strip() in ("counted", "late")}


class Fleet:
    """What a case of trouble can lay hands on.

    Attributes:
        disk: the small disk that somebody works on, where the case has one.
        may_end_with: exit codes that are no reason to give up, because the case starts the process again.
    """

    def __init__(
        self,
        directory: Path,
        broker: RunningMosquitto,
        proxy: FaultProxy,
        run: Run,
        agents: dict[str, Agent],
        disk: SmallDisk | None,
    ) -> None:
        self.directory = directory
        self.broker = broker
        self.proxy = proxy
        self.run = run
        self.agents = agents
        self.disk = disk
        self.may_end_with: set[int] = set()

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Returns once something holds."""
        for _ in range(int(PATIENCE_S / _LOOK_S)):
            if holds():
                return
            await asyncio.sleep(_LOOK_S)
        raise AssertionError(f"{what} does not come:\n{self.logs()}")

    async def until_round(self, round_: int) -> None:
        await self.until(f"round {round_}", lambda: f"round {round_} of " in self.run.log.read_text())

    async def until_holding(self, device: str, round_: int) -> None:
        """Returns once a device has an update of that round that it was not yet told the fate of."""
        kept = self.agents[device].state / "runs"
        await self.until(f"{device}'s update {round_}", lambda: bool(list(kept.glob(f"*/offer-{round_}.json"))))

    def restart_aggregator(self) -> None:
        """As kill -9 does, and at once again."""
        assert self.run.process is not None
        self.run.process.kill()
        self.run.process.wait()
        self.run.start()

    def status(self) -> dict[str, Any]:
        """Returns what `edgefed status --json` says."""
        command = [sys.executable, "-m", "edgefed", "status", "-c", str(self.run.config), "--json"]
        return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))

    def logs(self) -> str:
        logs = [self.run.log, *(agent.log for agent in self.agents.values())]
        return "\n".join(f"--- {log.name}\n{log.read_text()[-6000:]}" for log in logs if log.exists())

    def account(self) -> Account:
        """Returns what became of every update, from the journal, the store, and what the agents were told."""
        rules = read_federation(self.run.config).rules
        state, merges = State(), dict[int, Merge]()
        with Store.reading(self.run.directory) as store:
            for event, now_s in store.journal():
                state, actions = rounds.step(state, event, now_s, rules)
                merges |= {action.round: action for action in actions if isinstance(action, Merge)}
            rounds_kept = store.merged_rounds()
            used = [answer for answer in store.answers() if answer.outcome in ("counted", "late")]
        return Account(
            merged=Counter(
                (u.device, u.round) for one in rounds_kept if one.copied is None for u in merges[one.round].updates
            ),
            excluded=frozenset((one.device, one.round) for kept in rounds_kept for one in kept.interventions),
            acknowledged=frozenset(
                (name, round_)
                for agent in self.agents.values()
                for name, round_ in agent.acknowledged()
                if round_ <= rules.rounds  # the last look brings no update
            ),
            answered=frozenset((answer.device, answer.round) for answer in used),
            adapter=(self.run.directory / "adapter" / "adapter_model.safetensors").read_bytes(),
            left_over=tuple(
                str(path.name)
                for agent in self.agents.values()
                for path in (agent.state / "runs").glob("*/offer-*.json")
                if path.name != f"offer-{rules.rounds + 1}.json"
            ),
        )


async def federate(
    directory: Path,
    trouble: Callable[[Fleet], Awaitable[None]],
    *,
    selection: str = "expected_devices = 2\nquorum = 2\ndeadline_s = 6\n",
    mischief: Mischief | None = None,
    persistence: bool = False,
    small_disk_of: str = "",
) -> Account:
    """Runs a federation of two real agents in three rounds while `trouble` does its worst, and returns the account.

    Args:
        directory: of everything; made.
        trouble: what happens.
        selection: lines of `[selection]`.
        mischief: of a worker.
        persistence: whether the broker remembers over a restart.
        small_disk_of: who works on a small disk of its own: `run` (the aggregator) or a device.

    Raises:
        AssertionError: the federation does not come to its end; the message has the logs.
    """
    async with _fleet(directory, selection, mischief, small_disk_of, persistence=persistence) as fleet:
        making = asyncio.ensure_future(trouble(fleet))
        ending = asyncio.ensure_future(_until_all_ended(fleet))
        try:
            await asyncio.wait_for(asyncio.gather(making, ending), PATIENCE_S)
        except asyncio.TimeoutError:
            raise AssertionError(f"it does not end:\n{fleet.logs()}") from None
        return fleet.account()


async def _until_all_ended(fleet: Fleet) -> None:
    """Returns once the aggregator and every agent have ended by themselves."""

    def ended() -> bool:
        processes = [fleet.run.process, *(agent.process for agent in fleet.agents.values())]
        codes = [process.poll() if process is not None else None for process in processes]
        wrong = [code for code in codes if code not in (None, 0, -signal.SIGKILL, *fleet.may_end_with)]
        assert not wrong, f"exit code {wrong[0]}:\n{fleet.logs()}"
        return all(code == 0 for code in codes)

    await fleet.until("the end", ended)


@contextlib.asynccontextmanager
async def _fleet(
    directory: Path, selection: str, mischief: Mischief | None, small_disk_of: str, *, persistence: bool
) -> AsyncIterator[Fleet]:
    directory.mkdir(parents=True)
    kept = directory / "broker"
    kept.mkdir()
    (directory / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
    model = make_paper_model(directory / "model")
    with contextlib.ExitStack() as stack:
        disk = (
            stack.enter_context(small_disk(directory / small_disk_of, size_bytes=_DISK_BYTES))
            if small_disk_of
            else None
        )
        broker = stack.enter_context(running_mosquitto(persistence_dir=kept if persistence else None))
        async with FaultProxy(broker.port, seed=1, delay_s=_DELAY_S) as proxy:
            toml = federation_toml(
                model, directory / "run", broker.port, selection=selection, broker="keepalive_s = 5\n"
            )
            run = Run(directory, toml)
            agents = {
                name: Agent(
                    directory, name, proxy.port, rank, mischief if mischief and mischief.device == name else None
                )
                for name, rank in (("one", 2), ("two", 4))
            }
            fleet = Fleet(directory, broker, proxy, run, agents, disk)
            try:
                run.start()
                for agent in agents.values():
                    agent.start()
                yield fleet
            finally:
                run.end()
                for agent in agents.values():
                    agent.kill()
