"""The micro-benchmark in this process: exact lengths, records as of a round, what is refused at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from edgefed.errors import ConfigError, ModelError
from edgefed.models.flops import Adaptation, step_flops
from edgefed.models.random_checkpoint import write_random_checkpoint
from edgefed.training.bench import bench, least_bytes, shape_layout
from edgefed.training.bench_work import BenchWork
from edgefed.training.round_work import Suspend

pytestmark = pytest.mark.torch

Seen = list[tuple[str, int, int]]


@pytest.fixture
def work(tmp_path: Path) -> BenchWork:
    return BenchWork(
        directory=str(tmp_path / "model"),
        shape="tiny",
        quantization="fp32",
        rank=4,
        batch_size=2,
        source_tokens=24,
        target_tokens=9,
        warmup_steps=2,
        steps=3,
        threads=1,
        hardware="cpu",
    )


@pytest.fixture(autouse=True)
def brief_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on how well the matrix-product rate is measured."""
    monkeypatch.setattr("edgefed.training.bench._PEAK_S", 0.02)


def silent(stage: str, step: int, steps: int) -> None: ...


def test_a_record_as_of_a_round(work: BenchWork) -> None:
    seen: Seen = []
    outcome = bench(work, lambda *frame: seen.append(frame))
    record = outcome.record
    assert (record.steps, record.examples, record.quantization, record.rank) == (3, 10, "fp32", 4)
    assert (record.source_tokens, record.target_tokens) == (3 * 2 * 24, 3 * 2 * 9), "without the warm-up"
    one = step_flops(shape_layout("tiny"), Adaptation(["q", "v"], 4), 24, 9, batch=2)
    assert record.model_flops == pytest.approx(3 * one.model)
    assert len(record.step_records) == 3
    assert record.forward_s == pytest.approx(sum(step.forward_s for step in record.step_records))
    phases_s = record.data_s + record.forward_s + record.backward_s + record.optimizer_s
    assert phases_s <= record.train_s
    assert record.live_peak_flops_per_s is not None
    assert record.peak_memory_bytes is not None
    assert record.peak_resident_bytes is not None
    assert record.peak_resident_bytes >= record.peak_memory_bytes > 4 * shape_layout("tiny").parameters
    assert (outcome.kind, outcome.machine.compute.threads, outcome.machine.gpu) == ("fp32", 1, None)
    assert list(outcome.machine.compute.flops_per_s) == ["fp32"]
    assert "torch" in outcome.software
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["writing", "measuring", "loading", "warming", "training"]
    assert [step for stage, step, _ in seen if stage == "training"] == [0, 1, 2, 3]


@pytest.mark.parametrize("quantization", ["bf16", "int8", "nf4"])
def test_other_precisions_with_a_held_branch_and_checkpointing(work: BenchWork, quantization: str) -> None:
    changed = msgspec.structs.replace(work, quantization=quantization, held_rank=6, gradient_checkpointing=True)
    record = bench(changed, silent).record
    assert (record.quantization, record.held_rank, record.gradient_checkpointing) == (quantization, 6, True)
    one = step_flops(shape_layout("tiny"), Adaptation(["q", "v"], 4, 6), 24, 9, batch=2)
    assert record.model_flops == pytest.approx(3 * one.model)
    assert record.loss_mean is not None
    assert record.loss_mean > 0


def test_a_checkpoint_with_a_tokenizer_of_its_own(work: BenchWork, tiny_path: Path) -> None:
    record = bench(msgspec.structs.replace(work, directory=str(tiny_path), shape=None), silent).record
    assert (record.source_tokens, record.target_tokens) == (3 * 2 * 24, 3 * 2 * 9)


def test_stopped_among_the_measured_steps_it_tells_those_that_were_done(work: BenchWork) -> None:
    def stop(stage: str, step: int, steps: int) -> None:
        if (stage, step) == ("training", 2):
            raise Suspend

    record = bench(work, stop).record
    assert record.steps == len(record.step_records) == 2


@pytest.mark.parametrize("when", [("training", 0), ("loading", 0)])
def test_stopped_before_a_step_was_measured_it_tells_nothing(work: BenchWork, when: tuple[str, int]) -> None:
    def stop(stage: str, step: int, steps: int) -> None:
        if (stage, step) == when:
            raise Suspend

    with pytest.raises(Suspend):
        bench(work, stop)


def test_without_a_warm_up_every_step_is_measured(work: BenchWork) -> None:
    seen: Seen = []
    record = bench(msgspec.structs.replace(work, warmup_steps=0, steps=2), lambda *frame: seen.append(frame)).record
    assert record.steps == 2
    assert [frame for frame in seen if frame[0] in ("warming", "training")] == [
        ("training", 0, 2), ("training", 1, 2), ("training", 2, 2),
    ]  # fmt: skip


def test_what_is_there_is_used_again_unless_it_is_another_model(work: BenchWork) -> None:
    write_random_checkpoint(Path(work.directory), shape_layout("tiny"))
    weights = Path(work.directory) / "model.safetensors"
    before = weights.stat()
    bench(msgspec.structs.replace(work, steps=1, warmup_steps=0), silent)
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(ModelError, match=r"holds another model than google/flan-t5-small"):
        bench(msgspec.structs.replace(work, shape="flan-t5-small"), silent)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_hardware_that_is_not_there(work: BenchWork) -> None:
    with pytest.raises(ModelError, match="device 'cuda' was asked for, and torch finds none"):
        bench(msgspec.structs.replace(work, hardware="cuda"), silent)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"rank": 129}, ConfigError, "rank 129 is over 128"),
        ({"held_rank": 200}, ConfigError, "held rank 200 is over 128"),
        ({"batch_size": 10**9}, ModelError, "takes at least .* GB of memory are available"),
        ({"target_modules": ["query"]}, ModelError, "'query'"),
        ({"shape": None}, ModelError, "there is no model directory"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    work: BenchWork, change: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        bench(msgspec.structs.replace(work, **change), silent)
    assert not Path(work.directory).exists()


def test_least_bytes_are_weights_factors_and_logits(work: BenchWork) -> None:
    layout = replace(shape_layout("flan-t5-small"), vocabulary=1000)
    small = msgspec.structs.replace(work, batch_size=1, target_tokens=2)
    beside = 16 * layout.lora_parameters(["q", "v"], 4) + 8 * 2 * 1000
    assert least_bytes(layout, small, torch.float32) == 4 * layout.parameters + beside
    nf4 = least_bytes(layout, msgspec.structs.replace(small, quantization="nf4"), torch.float32)
    others = layout.parameters - layout.linear_parameters
    assert nf4 == layout.linear_parameters // 2 + 4 * others + beside
