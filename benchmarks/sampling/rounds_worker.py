"""Does a LoRA round of the tiny T5 for every line on stdin, and says on stdout what each of its steps took.

The line is `even` or `odd`: those steps have their phases timed, the others have not. All rounds have the same batches,
so that a step of one round compares with the same step of another.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from edgefed.data.source import DataSource
from edgefed.protocol.messages.manifest import Manifest, Plan
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, SummarizationTask, Training
from edgefed.training import loop
from edgefed.training.lora_round import Rounds
from edgefed.training.round_work import RoundWork
from edgefed.training.steps import StepRecord
from edgefed.training.timers import PhaseTimer


class NoTimer:
    """A stop-watch without a clock."""

    def __init__(self, device: torch.device) -> None:
        pass

    def mark(self, phase: str) -> None:
        """Take no time."""

    def seconds(self) -> dict[str, float]:
        """Return no time for any phase."""
        return dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)


def round_work(directory: Path, steps: int, threads: int) -> RoundWork:
    """Return a round of the shipped model on the shipped dialogues, always the same one."""
    data = Path(str(resources.files("edgefed.assets"))) / "dialogues" / "train.jsonl"
    return RoundWork(
        announced=RoundOpen(
            run="sampling",
            round=1,
            rounds=1,
            kind="train",
            model=ModelReference(name="edgefed/tiny-t5"),
            task=SummarizationTask(max_source_tokens=128, max_target_tokens=32),
            method=LoraMethod(),
            training=Training(local_steps=steps, batch_size=4, learning_rate=1e-3),
            evaluation=Evaluation(every=0),
            evaluates=False,
            deadline_s=600.0,
            seed=0,
            manifest=Manifest(),
        ),
        device="bench",
        data=DataSource(path=str(data)),
        models={},
        plan=Plan(rank=8, held_rank=0, quantization="fp32"),
        parts=[],
        output=str(directory / "update.safetensors"),
        residual=str(directory / "residual.safetensors"),
        threads=threads,
        hardware="cpu",
    )


def timer_s_per_step(repeats: int = 20000) -> float:
    """Return the seconds that the phase timer itself takes of a step on the CPU, by a loop of nothing else."""
    began_s = time.perf_counter()
    for _ in range(repeats):
        timer = PhaseTimer(torch.device("cpu"))
        for phase in ("data", "forward", "backward", "optimizer"):
            timer.mark(phase)
        timer.seconds()
    return (time.perf_counter() - began_s) / repeats


class Steps:
    """Stands in for the loop's own step: does it, with or without a stop-watch, and keeps what it took."""

    def __init__(self) -> None:
        self._step: Callable[..., StepRecord] = loop._step
        self.timed_parity = 0
        self.seconds: list[float] = []

    def __call__(self, *arguments: Any) -> StepRecord:
        """Return the record of a step."""
        timed = len(self.seconds) % 2 == self.timed_parity
        loop.PhaseTimer = PhaseTimer if timed else NoTimer
        began_s = time.perf_counter()
        record = self._step(*arguments)
        self.seconds.append(time.perf_counter() - began_s)
        assert (record.forward_s > 0) == timed
        return record


def main() -> None:
    """Serve rounds until stdin ends."""
    work = round_work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    rounds, steps = Rounds(), Steps()
    loop._step = steps
    for line in sys.stdin:
        steps.timed_parity, steps.seconds = ("even", "odd").index(line.strip()), []
        rounds.run(work, lambda *_: None)
        print(json.dumps(steps.seconds), flush=True)


if __name__ == "__main__":
    main()
