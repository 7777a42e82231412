"""Many agents in one process: real supervisors whose worker is a trainer without torch, in threads.

`python -m benchmarks.soak.agents CONFIG...` runs one agent per configuration until the federation is over.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgefed.agent.frames import Finished, Prepare, Prepared, Probe, Probed, Progress, Work
from edgefed.agent.session import run_agent
from edgefed.agent.worker_process import WorkerProcess
from edgefed.config import read_agent
from edgefed.errors import WorkerError
from edgefed.lora.files import write_adapter
from edgefed.lora.low_rank import LowRank
from edgefed.models.checkpoint import fingerprint, linear_shapes
from edgefed.protocol.records import MAX_STEP_RECORDS, EvaluationRecord, RoundRecord, StepRecord
from edgefed.stopping import run_stoppable
from edgefed.training.round_work import RoundWork, TrainingSet

__all__ = ["EXAMPLES", "Trainer"]

EXAMPLES = 10
_STEPS = 16


class Trainer(WorkerProcess):
    """Answers as a worker does, without a process: a valid random update that depends on device and round only."""

    def __init__(self) -> None:
        super().__init__(silence_s=60.0)

    async def prepare(self, request: Prepare) -> Prepared:
        """See `WorkerProcess`."""
        path = Path(request.round.model.name)
        training_set = TrainingSet(examples=EXAMPLES, source_tokens=9, target_tokens=5)
        return Prepared(model_path=str(path), fingerprint=fingerprint(path), training_set=training_set)

    async def work(self, request: Work, on_progress: Callable[[Progress], None]) -> Finished:
        """See `WorkerProcess`."""
        on_progress(Progress(stage="training", step=1, steps=_STEPS))
        return Finished(record=await asyncio.to_thread(_train, request.work))

    async def probe(self, request: Probe, on_progress: Callable[[Progress], None]) -> Probed:  # noqa: ARG002
        """See `WorkerProcess`."""
        raise WorkerError("this trainer does not measure")


def _train(work: RoundWork) -> RoundRecord:
    announced, plan = work.announced, work.plan
    if announced.kind == "train":
        draw = np.random.default_rng([announced.round, *work.device.encode()])
        shapes = linear_shapes(Path(announced.model.name), announced.method.target_modules)
        adapter = {
            module: LowRank(
                draw.normal(size=(m, plan.rank)).astype("f4"), draw.normal(size=(plan.rank, n)).astype("f4")
            )
            for module, (m, n) in shapes.items()
        }
        write_adapter(Path(work.output), adapter, precision="fp16")
    step = StepRecord(
        loss=2.5, data_s=0.01, forward_s=0.1, backward_s=0.2, optimizer_s=0.01, source_tokens=900, target_tokens=90
    )
    evaluation = EvaluationRecord(loss=2.0 + 1.0 / announced.round, target_tokens=100, examples=5, evaluate_s=0.1)
    return RoundRecord(
        device=work.device,
        round=announced.round,
        rank=plan.rank,
        held_rank=plan.held_rank,
        quantization=plan.quantization,
        examples=EXAMPLES,
        steps=_STEPS,
        step_records=[step] * min(_STEPS, MAX_STEP_RECORDS),
        evaluation=evaluation if announced.evaluates else None,
    )


async def _run_all(configs: list[Path]) -> None:
    agents = [run_agent(read_agent(path), once=True, worker=Trainer()) for path in configs]
    await asyncio.gather(*agents)


def main(arguments: list[str]) -> None:
    """Run the agents; what goes wrong with one of them ends all."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    run_stoppable(_run_all([Path(argument) for argument in arguments]))


if __name__ == "__main__":
    main(sys.argv[1:])
