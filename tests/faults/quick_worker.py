"""A worker that speaks the frames and makes valid updates without torch, and once does what a worker must not do.

`python -m tests.faults.quick_worker DONE [MISCHIEF ROUND]`. An update depends on nothing but device and round, so a
federation that was disturbed must come to the same result as one that was not. The file DONE is made by the mischief.
With `worse` the worker finds in that round that the adapter is much worse. Two others last: with `hungry` and `glutton`
memory does not hold micro-batches of more than ROUND examples. The first dies as if the kernel had killed it, the
second really takes memory under a real limit (`small_memory`): that of a control group as `glutton:DIRECTORY`, else one
of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from edgefed.agent.frames import (
    Answer,
    Failed,
    Finished,
    Prepare,
    Prepared,
    Probed,
    Progress,
    Work,
    decode_request,
    encode_frame,
)
from edgefed.devices.compute import ComputeProfile, MachineProbe
from edgefed.devices.measurement import measured
from edgefed.lora.files import write_adapter
from edgefed.lora.low_rank import LowRank
from edgefed.models.checkpoint import fingerprint, linear_shapes
from edgefed.protocol.records import EvaluationRecord, RoundRecord
from edgefed.training.round_work import RoundWork, TrainingSet
from tests.faults.small_memory import EXAMPLE_BYTES, almost_twice, enter_limit

_STEPS = 5
_STEP_S = 0.1
_HANG_S = 3600.0
_EXAMPLES = 10
_LASTING = ("hungry", "glutton", "worse")
_RATE = measured(1e10, "made up")
_MACHINE = MachineProbe(
    compute=ComputeProfile(hardware="cpu", threads=1, flops_per_s={"fp32": _RATE}, memory_bandwidth_bytes_per_s=_RATE),
    why_no_gpu="none was looked for",
)


class Worker:
    """One worker's life."""

    def __init__(self, done: Path, mischief: str = "", mischief_round: int = 0) -> None:
        self._done = done
        self._mischief = mischief
        self._mischief_round = mischief_round

    def answer(self, request: object) -> Answer:
        if isinstance(request, Prepare):
            path = Path(request.round.model.name)  # the tests' models are directories
            training_set = TrainingSet(examples=_EXAMPLES, source_tokens=9, target_tokens=5)
            return Prepared(model_path=str(path), fingerprint=fingerprint(path), training_set=training_set)
        if isinstance(request, Work):
            try:
                return Finished(record=self._train(request.work))
            except OSError as error:
                return Failed(kind="disk", message=str(error))
            except MemoryError as error:
                return Failed(kind="memory", message=str(error))
        return Probed(machine=_MACHINE)

    def _train(self, work: RoundWork) -> RoundRecord:
        announced, plan = work.announced, work.plan
        for step in range(_STEPS):
            say(Progress(stage="training", step=step, steps=_STEPS))
            time.sleep(_STEP_S)
            if self._mischief == "hungry" and plan.micro_batch_size > self._mischief_round:
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
            if self._mischief == "glutton":
                np.ones(plan.micro_batch_size * EXAMPLE_BYTES, dtype="i1")
            if step == _STEPS // 2:
                self._misbehave(announced.round)
        if announced.kind == "train":
            path = Path(announced.model.name)
            draw = np.random.default_rng([announced.round, *work.device.encode()])
            adapter = {
                module: LowRank(
                    draw.normal(size=(m, plan.rank)).astype("f4"), draw.normal(size=(plan.rank, n)).astype("f4")
                )
                for module, (m, n) in linear_shapes(path, announced.method.target_modules).items()
            }
            write_adapter(Path(work.output), adapter, precision="fp32")
        worse = self._mischief == "worse" and announced.round == self._mischief_round
        loss = 100.0 if worse else 2.0 / announced.round
        evaluation = EvaluationRecord(loss=loss, target_tokens=100, examples=5, evaluate_s=0.1)
        return RoundRecord(
            device=work.device,
            round=announced.round,
            rank=plan.rank,
            held_rank=plan.held_rank,
            quantization=plan.quantization,
            examples=_EXAMPLES,
            evaluation=evaluation if announced.evaluates else None,
        )

    def _misbehave(self, round_: int) -> None:
        if self._mischief in _LASTING or round_ != self._mischief_round or self._done.exists():
            return
        self._done.touch()
        if self._mischief == "hang":
            time.sleep(_HANG_S)
        elif self._mischief == "garbage":
            sys.stdout.buffer.write(os.urandom(100_000) + b"\n")
            sys.stdout.buffer.flush()
        elif self._mischief == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._mischief == "dawdle":
            while self._done.exists():  # until somebody removes it
                say(Progress(stage="training"))
                time.sleep(_STEP_S)
        else:
            raise ValueError(f"no such mischief: {self._mischief!r}")


def say(answer: Answer) -> None:
    sys.stdout.buffer.write(encode_frame(answer))
    sys.stdout.buffer.flush()


def main(done: str, mischief: str = "", mischief_round: str = "0") -> None:
    mischief, _, group = mischief.partition(":")
    worker = Worker(Path(done), mischief, int(mischief_round))
    if mischief == "glutton":
        enter_limit(almost_twice(int(mischief_round)), group)
    for line in sys.stdin.buffer:
        say(worker.answer(decode_request(line)))


if __name__ == "__main__":
    main(*sys.argv[1:])
