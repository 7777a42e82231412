from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from edgefed.data.source import DataSource
from edgefed.protocol.messages.manifest import Manifest, Plan
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, Privacy, SummarizationTask, Training
from edgefed.training.lora_round import Rounds
from edgefed.training.round_work import RoundWork, Suspend, WorkSuspended, residual_beside

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


def test_a_private_round_tells_nothing_of_its_examples_but_the_noisy_update(work: RoundWork, tmp_path: Path) -> None:
    told: list[float | None] = []

    def report(stage: str, step: int, steps: int, loss: float | None) -> None:
        told.append(loss)

    private = msgspec.structs.replace(work.announced, privacy=Privacy(example_noise_multiplier=1.0))
    record = Rounds().run(msgspec.structs.replace(work, announced=private), report)
    assert record.steps == 2
    assert record.examples == 4
    assert record.train_s > 0
    assert set(told) == {None}
    assert (record.loss_first, record.loss_mean, record.loss_last, record.model_flops) == (None, None, None, None)
    assert (record.source_tokens, record.target_tokens, record.step_records) == (0, 0, [])
    assert Path(work.output).stat().st_size > 0


def test_what_was_trained_without_privacy_is_not_gone_on_with_under_it(work: RoundWork) -> None:
    def stop(stage: str, step: int, steps: int, loss: float | None) -> None:
        if stage == "training" and step == 1:
            raise Suspend

    rounds = Rounds()
    with pytest.raises(WorkSuspended, match="1 of 2"):
        rounds.run(work, stop)
    private = msgspec.structs.replace(work.announced, privacy=Privacy(example_noise_multiplier=1.0))
    done: list[int] = []
    rounds.run(
        msgspec.structs.replace(work, announced=private),
        lambda stage, step, *_: done.append(step) if stage == "training" else None,
    )
    assert done == [0, 1, 2]
