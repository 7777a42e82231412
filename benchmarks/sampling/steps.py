"""What timing the phases and looking at the hardware cost a training step, in a real round of the tiny T5.

A worker process does rounds on request; in each, every other step has its phases timed. This process stands for the
supervisor, and looks at the hardware twice a second meanwhile, or does not.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgefed.devices.instruments import Instruments
from edgefed.devices.sampling import SAMPLE_S, Sampler

__all__ = ["RoundsWorker", "compare"]

PARITIES = ("even", "odd")


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

    def round(self, timed: str) -> list[float]:
        """Return what each step of a round took, those of one parity with their phases timed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{timed}\n")
        self._process.stdin.flush()
        seconds: list[float] = json.loads(self._process.stdout.readline())
        return seconds


def compare(worker: RoundsWorker, instruments: Instruments, *, turns: int) -> dict[str, Any]:
    """Return the ratios of neighbours in time: the same step timed or not, the same round looked at or not.

    A turn is four rounds in an order drawn anew: even or odd steps timed, hardware looked at or not.
    """
    dice = random.Random(0)
    for parity in PARITIES:
        worker.round(parity)  # warm up
    timing: list[float] = []
    sampling: list[float] = []
    bare: list[float] = []
    for turn in range(turns):
        found: dict[tuple[str, bool], list[float]] = {}
        for parity, looked in dice.sample(list(itertools.product(PARITIES, (False, True))), 4):
            with looking(lambda: Sampler(lambda: worker.pid, instruments=instruments), wanted=looked):
                found[parity, looked] = worker.round(parity)
        for looked in (False, True):
            timed, untimed = _by_timing(found["even", looked], found["odd", looked])
            timing += [a / b for a, b in zip(timed, untimed, strict=True)]
            bare += [] if looked else untimed
        sampling += [sum(found[parity, True]) / sum(found[parity, False]) for parity in PARITIES]
        print(f"  turn {turn + 1} of {turns}", flush=True)
    return {
        "bare_step_s": statistics.median(bare),
        "timed_over_untimed_step": _median(timing),
        "looked_at_over_not_round": _median(sampling),
        "turns": turns,
    }


def _by_timing(even: Sequence[float], odd: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return each step's seconds (timed, untimed) of two rounds of which one timed the even steps, one the odd."""
    pairs = [(e, o) if i % 2 == 0 else (o, e) for i, (e, o) in enumerate(zip(even, odd, strict=True))]
    return [timed for timed, _ in pairs], [untimed for _, untimed in pairs]


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


def _median(ratios: list[float]) -> dict[str, Any]:
    """Return the median, and an interval of 95 % for it by ranks, which assumes no shape of the noise."""
    ordered, half = sorted(ratios), 0.98 * math.sqrt(len(ratios))
    low = max(0, math.floor(len(ordered) / 2 - half))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half))
    return {"median": statistics.median(ordered), "interval_95": [ordered[low], ordered[high]], "pairs": len(ordered)}
