from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from edgefed.data.source import DataSource
from edgefed.protocol.messages.manifest import Manifest, Plan
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, SummarizationTask, Training
from edgefed.training.lora_round import Rounds
from edgefed.training.round_work import RoundWork, residual_beside

pytestmark = pytest.mark.torch


@pytest.fixture
def work(tmp_path: Path) -> RoundWork:
    rows = [{"dialogue": f"a: is it {i}? b: it is {i}.", "summary": f"It is {i}."} for i in range(4)]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RoundWork(
        announced=RoundOpen(
            run="r",
            round=1,
            rounds=1,
            kind="train",
            model=ModelReference(name="edgefed/tiny-t5"),
            task=SummarizationTask(max_source_tokens=32, max_target_tokens=16),
            method=LoraMethod(upload_precision="int8"),
            training=Training(local_steps=2, batch_size=2, learning_rate=1e-2),
            evaluation=Evaluation(every=0),
            evaluates=False,
            deadline_s=600.0,
            seed=0,
            manifest=Manifest(),
        ),
        device="a",
        data=DataSource(path=str(tmp_path / "examples.jsonl")),
        models={},
        plan=Plan(rank=2, held_rank=0, quantization="fp32"),
        parts=[],
        output=str(tmp_path / "update.safetensors"),
        residual=str(tmp_path / "residual.safetensors"),
        threads=1,
        hardware="cpu",
    )


def test_only_an_update_that_counted_is_made_up_for(work: RoundWork, tmp_path: Path) -> None:
    rounds = Rounds()

    def sent(name: str) -> bytes:
        output = tmp_path / name
        rounds.run(msgspec.structs.replace(work, output=str(output)), lambda *_: None)
        return output.read_bytes()

    first = sent("first")
    assert not Path(work.residual).exists()
    assert sent("second") == first, "the first was not counted: nothing is owed"
    residual_beside(tmp_path / "first").replace(work.residual)
    owed = Path(work.residual).read_bytes()
    assert sent("third") != first, "the first counted: what rounding took from it goes out now"
    assert Path(work.residual).read_bytes() == owed
