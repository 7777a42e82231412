"""Does anything grow in a federation that goes on for long, on a bad network? See README.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.provenance import provenance
from benchmarks.soak.account import Eavesdropper, account
from tests.faults.proxy import FaultProxy
from tests.federation.stand_in import FLEET, federation_toml, make_paper_model
from tools.mosquitto import running_mosquitto

LOOK_S = 1.0
LIMIT = 1.05

AGENT = """\
device = "{name}"
fleet = "{fleet}"
state = "{directory}/{name}"
[broker]
host = "127.0.0.1"
port = {port}
keepalive_s = 20
[data]
path = "{directory}/data.jsonl"
[profile]
measure = "quick"
[limits]
max_rank = {rank}
quantization = "fp32"
"""


@dataclass
class Watched:
    """A process that lives as long as the federation, and what was seen of it."""

    name: str
    process: subprocess.Popen[bytes]
    rounds: list[int] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def look(self, round_: int) -> None:
        """Notes what the process takes while a round is under way."""
        try:
            seen = psutil.Process(self.process.pid)
            memory, files = seen.memory_info().rss, seen.num_fds()
        except psutil.Error:
            return
        if self.process.poll() is not None:  # it has ended, and takes nothing any more
            return
        self.rounds.append(round_)
        self.resident_bytes.append(memory)
        self.files.append(files)

    def verdict(self, rounds: int) -> dict[str, Any]:
        """Means by quarter of the rounds, and the last one's ratio to the second's.

        Raises:
            RuntimeError: it was not there all the time, so that there is nothing to compare.
        """
        memory, files = (self._quarters(values, rounds) for values in (self.resident_bytes, self.files))
        return {
            "resident_bytes_by_quarter": [round(value) for value in memory],
            "memory_ratio": round(memory[3] / memory[1], 4),
            "files_by_quarter": [round(value, 1) for value in files],
            "files_ratio": round(files[3] / files[1], 4),
            "peak_resident_bytes": max(self.resident_bytes),
        }

    def _quarters(self, values: list[int], rounds: int) -> list[float]:
        quarters: list[list[int]] = [[], [], [], []]
        for round_, value in zip(self.rounds, values, strict=True):
            quarters[min(3, 4 * max(0, round_ - 1) // rounds)].append(value)
        if not all(quarters):
            raise RuntimeError(f"{self.name} has ended, or the federation was too short: see its log")
        return [statistics.fmean(quarter) for quarter in quarters]


class Soak:
    """The processes of one run."""

    def __init__(self, directory: Path, port: int, options: argparse.Namespace) -> None:
        self.directory = directory
        self.options = options
        self.kills = 0
        model = make_paper_model(directory / "model")
        (directory / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
        quorum = options.agents * 3 // 5
        self.config = directory / "federation.toml"
        toml = federation_toml(
            model,
            directory / "run",
            options.broker_port,
            selection=f"expected_devices = {options.agents}\nquorum = {quorum}\ngather_s = 1.0\ndeadline_s = 4.0\n",
            transfers="uploads_at_once = 16\nwindow_chunks = 16\n",
        )
        self.config.write_text(toml.replace("rounds = 3\n", f"rounds = {options.rounds}\n"))
        self._configs = []
        for i in range(options.agents):
            name = f"agent-{i:02d}"
            text = AGENT.format(name=name, fleet=FLEET, directory=directory, port=port, rank=(2, 4)[i % 2])
            self._configs.append(directory / f"{name}.toml")
            self._configs[-1].write_text(text)

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Starts a module; what it says goes to a log."""
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)

    def start_aggregator(self) -> Watched:
        """Starts the real one."""
        command = ("edgefed", "-v", "aggregator", "--config", str(self.config))
        return Watched("aggregator", self.start("aggregator", *command))

    def start_host(self, number: int) -> Watched:
        """Starts the process of one share of the agents."""
        share = self._configs[number :: self.options.hosts]
        return Watched(f"host-{number}", self.start(f"host-{number}", "benchmarks.soak.agents", *map(str, share)))

    def round(self) -> int:
        """How many rounds are merged, by the directories of the states that came out."""
        states = (self.directory / "run" / "global").glob("*")
        return max((int(state.name) for state in states if state.name.isdecimal()), default=0)


def _keep_looks(path: Path, watched: list[Watched]) -> None:
    """Adds the latest look at every process to a file: what is left of a run that was cut short."""
    latest = {one.name: [one.rounds[-1], one.resident_bytes[-1], one.files[-1]] for one in watched if one.rounds}
    with path.open("a") as file:
        file.write(json.dumps(latest) + "\n")


async def _soak(soak: Soak, proxy: FaultProxy, watched: list[Watched], draw: random.Random) -> None:
    """Watches all but the last host, which is killed with -9 again and again, until the aggregator has ended."""
    victim = watched.pop()
    try:
        next_kill_s = time.monotonic() + soak.options.kill_every_s
        while watched[0].process.poll() is None:
            await asyncio.sleep(LOOK_S)
            round_ = soak.round()
            for one in watched:
                one.look(round_)
                if one is not watched[0] and one.process.poll() and round_ < soak.options.rounds - 2:
                    raise RuntimeError(f"{one.name} ended with {one.process.returncode}: see its log")
            _keep_looks(soak.directory / "looks.jsonl", watched)
            if time.monotonic() > next_kill_s and round_ < soak.options.rounds - 2:
                victim.process.send_signal(signal.SIGKILL)
                victim.process.wait()
                soak.kills += 1
                await asyncio.sleep(draw.uniform(0.0, 3.0))
                victim = soak.start_host(soak.options.hosts - 1)
                next_kill_s = time.monotonic() + soak.options.kill_every_s * draw.uniform(0.5, 1.5)
            if round_ % 10 == 0:
                print(f"round {round_}, cuts {proxy.cuts}, kills {soak.kills}", flush=True)
        if watched[0].process.returncode:
            log = (soak.directory / "aggregator.log").read_text()
            raise RuntimeError(f"the aggregator ended with {watched[0].process.returncode}:\n{log[-4000:]}")
        for one in (*watched, victim):  # agents end by themselves, once they know that it is over
            await asyncio.to_thread(one.process.wait, 120)
    finally:
        for one in (*watched, victim):
            one.process.kill()
            one.process.wait()


async def _run(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    draw = random.Random(options.seed)
    ear = Eavesdropper(FLEET)
    async with FaultProxy(options.broker_port, seed=options.seed, cut_every_s=options.cut_every_s) as proxy:
        soak = Soak(directory, proxy.port, options)
        listening = asyncio.create_task(ear.listen(options.broker_port))
        watched = [soak.start_aggregator(), *(soak.start_host(number) for number in range(options.hosts))]
        hosts = list(watched[:-1])
        began_s = time.monotonic()
        await _soak(soak, proxy, watched, draw)
        seconds = time.monotonic() - began_s
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        codes = {one.name: one.process.returncode for one in hosts}
        return {
            "seconds": round(seconds, 1),
            "cuts": proxy.cuts,
            "kills": soak.kills,
            "exit_codes": codes,
            "account": account(soak.config, directory, ear.acknowledged),
            "processes": {one.name: one.verdict(options.rounds) for one in hosts},
        }


def main() -> None:
    """Run it and write the result; exits with 1 where something grew, was lost or counted twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--hosts", type=int, default=5, help="processes that the agents are shared out to")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--cut-every-s", type=float, default=20.0, help="mean time between cuts of all connections")
    parser.add_argument("--kill-every-s", type=float, default=25.0, help="mean time between kills of one host")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="work in this directory and leave it")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, running_mosquitto() as broker:
        options.broker_port = broker.port
        directory = options.keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(_run(options, directory))
    told = ("agents", "hosts", "rounds", "cut_every_s", "kill_every_s", "seed")
    result = {
        "provenance": provenance(),
        "cores": sorted(os.sched_getaffinity(0)),
        "target": {"memory_ratio_at_most": LIMIT, "files_ratio_at_most": LIMIT},
        "options": {name: getattr(options, name) for name in told},
        **result,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("seconds", "cuts", "kills", "account", "processes")}, indent=2))
    grew = [n for n, p in result["processes"].items() if max(p["memory_ratio"], p["files_ratio"]) > LIMIT]
    wrong = [key for key in ("lost", "counted_twice", "held_by_devices") if result["account"][key]]
    sys.exit(f"grew: {grew}; not clean: {wrong}" if grew or wrong else 0)


if __name__ == "__main__":
    main()
