"""Requests as the supervisor makes them, for tests of both ends of the pipe."""

from __future__ import annotations

import pytest

from edgefed.agent.frames import Prepare, Work
from edgefed.data.source import DataSource
from edgefed.protocol.messages.manifest import Manifest, Plan
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, SummarizationTask, Training
from edgefed.training.round_work import RoundWork


@pytest.fixture
def announced() -> RoundOpen:
    return RoundOpen(
        run="r",
        round=2,
        rounds=3,
        kind="train",
        model=ModelReference(name="./no-such-model"),
        task=SummarizationTask(),
        method=LoraMethod(),
        training=Training(),
        evaluation=Evaluation(),
        evaluates=True,
        deadline_s=600.0,
        seed=0,
        manifest=Manifest(),
    )


@pytest.fixture
def prepare(announced: RoundOpen) -> Prepare:
    return Prepare(round=announced, data=DataSource(path="examples.jsonl"), models={})


@pytest.fixture
def work(announced: RoundOpen) -> Work:
    return Work(
        work=RoundWork(
            announced=announced,
            device="a",
            data=DataSource(path="examples.jsonl"),
            models={},
            plan=Plan(rank=4, held_rank=0, quantization="fp32"),
            parts=[],
            output="update.safetensors",
            residual="residual.safetensors",
        )
    )
