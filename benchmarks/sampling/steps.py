"""What timing the phases and looking at the hardware cost a training step, in a real round of the tiny T5.

A worker process does rounds on request, with the phases of its steps timed or not; this process stands for the
supervisor, and looks at the hardware twice a second meanwhile, or does not.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefed.devices.instruments import Instruments
from edgefed.devices.sampling import SAMPLE_S, Sampler

__all__ = ["WAYS", "RoundsWorker", "compare"]

WAYS = {"bare": (False, False), "timed": (True, False), "sampled": (False, True), "both": (True, True)}
"""Whether phases are timed, and whether the hardware is looked at."""


@dataclass(frozen=True)
class Round:
    """Wall seconds of a round's training call, and the processor seconds of the worker in the whole round."""

    train_s: float
    cpu_s: float


class RoundsWorker:
    """A process that trains rounds; ended with the block."""

    def __init__(self, directory: Path, *, steps: int, threads: int) -> None:
        self._arguments = [str(directory), str(steps), str(threads)]

    def __enter__(self) -> RoundsWorker:
        command = [sys.executable, "-m", "benchmarks.sampling.rounds_worker", *self._arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def round(self, *, timed: bool) -> Round:
        """Return how long a round took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("timed\n" if timed else "bare\n")
        self._process.stdin.flush()
        return Round(**json.loads(self._process.stdout.readline()))


def compare(worker: RoundsWorker, instruments: Instruments, *, turns: int) -> dict[str, Any]:
    """Return seconds by way, and the ratios to `bare` within a turn, in which the ways come in an order drawn anew."""
    dice = random.Random(0)
    rounds: dict[str, list[Round]] = {way: [] for way in WAYS}
    for way in WAYS:
        worker.round(timed=WAYS[way][0])  # warm up
    for turn in range(turns):
        for way in dice.sample(list(WAYS), len(WAYS)):
            timed, sampled = WAYS[way]
            with looking(lambda: Sampler(lambda: worker.pid, instruments=instruments), wanted=sampled):
                rounds[way].append(worker.round(timed=timed))
        print(f"  turn {turn + 1} of {turns}: bare {rounds['bare'][-1].train_s:.2f} s", flush=True)
    return {
        "train_s_median": {way: statistics.median(one.train_s for one in found) for way, found in rounds.items()},
        "wall": {way: _ratio(rounds, way, lambda one: one.train_s) for way in WAYS if way != "bare"},
        "cpu": {way: _ratio(rounds, way, lambda one: one.cpu_s) for way in WAYS if way != "bare"},
        "turns": turns,
    }


@contextmanager
def looking(new_sampler: Callable[[], Sampler], *, wanted: bool) -> Iterator[None]:
    """Look at the hardware at 2 Hz in a thread while the block runs, if wanted."""
    if not wanted:
        yield
        return
    sampler, done = new_sampler(), threading.Event()

    def look() -> None:
        sampler.look()
        while not done.wait(SAMPLE_S):
            sampler.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _ratio(rounds: dict[str, list[Round]], way: str, read: Callable[[Round], float]) -> dict[str, Any]:
    """Return the ratio of medians, the median of ratios within a turn, and an interval of 95 % for the latter."""
    ours, bare = [read(one) for one in rounds[way]], [read(one) for one in rounds["bare"]]
    ratios = sorted(a / b for a, b in zip(ours, bare, strict=True))
    # The interval of a median by ranks (binomial with 1/2, normal approximation): no shape of the noise is assumed.
    half = 0.98 * math.sqrt(len(ratios))
    low, high = max(0, math.floor(len(ratios) / 2 - half)), min(len(ratios) - 1, math.ceil(len(ratios) / 2 + half))
    return {
        "ratio_of_medians": statistics.median(ours) / statistics.median(bare),
        "median_of_ratios": statistics.median(ratios),
        "median_of_ratios_95": [ratios[low], ratios[high]],
    }
