from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgefed.agent.options import Limits
from edgefed.agent.plan import CannotTakePart
from edgefed.agent.planning import Planned, Planning
from edgefed.devices.board_files import find_board
from edgefed.devices.compute import ComputeProfile
from edgefed.devices.emulation import emulate
from edgefed.devices.measurement import measured
from edgefed.devices.memory import HostMemory, training_memory
from edgefed.devices.profile import DeviceProfile, read_profile
from edgefed.models.finding import resolve_model
from edgefed.planner.history import decode_history
from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.records import RoundRecord
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, SummarizationTask, Training
from edgefed.training.round_work import TrainingSet

GIB = 1 << 30
TEXTS = TrainingSet(examples=10, source_tokens=128, target_tokens=32)


@pytest.fixture(scope="module")
def tiny() -> Path:
    return resolve_model("edgefed/tiny-t5")


def announced(**changes: Any) -> RoundOpen:
    values: dict[str, Any] = {
        "run": "r",
        "round": 2,
        "rounds": 3,
        "kind": "train",
        "model": ModelReference(name="edgefed/tiny-t5"),
        "task": SummarizationTask(),
        "method": LoraMethod(ranks=[2, 4, 8]),
        "training": Training(batch_size=8),
        "evaluation": Evaluation(),
        "evaluates": False,
        "deadline_s": 600.0,
        "seed": 0,
        "manifest": Manifest(),
    }
    return RoundOpen(**values | changes)


def profile(tmp_path: Path, available_bytes: int = 8 * GIB) -> DeviceProfile:
    host = HostMemory(total_bytes=8 * GIB, available_bytes=available_bytes)
    compute = ComputeProfile(
        hardware="cpu",
        threads=1,
        flops_per_s={name: measured(1e11, "mm") for name in ("fp32", "bf16", "int8", "nf4")},
        memory_bandwidth_bytes_per_s=measured(1e10, "copy"),
    )
    read = read_profile(tmp_path, quantization="auto", max_rank=0)
    return msgspec.structs.replace(read, compute=compute, memory=training_memory(host, None))


def planning(tmp_path: Path, limits: Limits | None = None, **changes: Any) -> Planning:
    return Planning(limits or Limits(), lambda: profile(tmp_path, **changes), tmp_path / "plans.json")


def record(planned: Planned, **changes: Any) -> RoundRecord:
    plan = planned.plan
    values: dict[str, Any] = {
        "device": "d",
        "round": 2,
        "rank": plan.rank,
        "held_rank": plan.held_rank,
        "quantization": plan.quantization,
        "examples": 10,
        "steps": 4,
        "train_s": 8.0,
        "peak_memory_bytes": GIB,
    }
    return RoundRecord(**values | changes)


def test_the_plan_is_told_with_its_reason_and_expectations(tmp_path: Path, tiny: Path) -> None:
    planned = planning(tmp_path).plan(announced(), tiny, TEXTS)
    assert (planned.plan.rank, planned.plan.quantization, planned.plan.micro_batch_size) == (8, "fp32", 8)
    told = planned.described(record(planned))
    assert told.plan_reason.startswith("rank 8, the largest that the federation trains; fp32")
    assert told.predicted_peak_bytes is not None
    assert 0.3 * GIB < told.predicted_peak_bytes < 2 * GIB
    assert told.predicted_step_s is not None
    assert 0 < told.predicted_step_s < 10


def test_the_owner_pins(tmp_path: Path, tiny: Path) -> None:
    planned = planning(tmp_path, Limits(max_rank=5, quantization="nf4")).plan(announced(), tiny, TEXTS)
    assert (planned.plan.rank, planned.plan.quantization) == (4, "nf4")


def test_what_fits_nothing_is_declined_with_what_it_needs(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(CannotTakePart, match=r"fits no allowed plan .* needs .* of memory, and .* may be used"):
        planning(tmp_path, available_bytes=GIB).plan(announced(), tiny, TEXTS)
    keeper = planning(tmp_path)
    tried = keeper.plan(announced(deadline_s=0.001), tiny, TEXTS)
    assert tried.reason.endswith("no step of this model was measured here yet, so it is tried")
    assert tried.plan.rank == 2
    keeper.succeeded(tried, record(tried))
    with pytest.raises(CannotTakePart, match="no plan meets the deadline"):
        keeper.plan(announced(deadline_s=0.001), tiny, TEXTS)
    assert planning(tmp_path).plan(announced(kind="evaluate", deadline_s=0.001), tiny, TEXTS).plan.rank == 8


def test_memory_that_ran_out_lowers_the_next_plan_even_after_a_restart(tmp_path: Path, tiny: Path) -> None:
    long = TrainingSet(examples=10, source_tokens=1024, target_tokens=128)
    first = planning(tmp_path)
    planned = [first.plan(announced(), tiny, long)]
    for _ in range(3):
        first.ran_out(planned[-1])
        planned.append(first.plan(announced(), tiny, long))
    needs = [one.candidate.memory.needed_bytes for one in planned if one.candidate]
    assert needs == sorted(set(needs), reverse=True)
    assert [one.plan.rank for one in planned] == [8] * 4  # micro-batches, recomputation, precision: then the rank
    assert planned[1].plan.micro_batch_size < planned[0].plan.micro_batch_size
    again = planning(tmp_path).plan(announced(), tiny, long)
    assert (again.plan, again.reason, again.candidate) == (planned[-1].plan, planned[-1].reason, planned[-1].candidate)


def test_what_was_measured_corrects_what_is_expected(tmp_path: Path, tiny: Path) -> None:
    keeper = planning(tmp_path)
    before = keeper.plan(announced(), tiny, TEXTS)
    assert before.candidate is not None
    assert before.candidate.time is not None
    measured_s = 3 * before.candidate.time.step_s
    peak = round(1.25 * before.candidate.memory.total_bytes)
    keeper.succeeded(before, record(before, train_s=4 * measured_s, peak_memory_bytes=peak))
    after = keeper.plan(announced(), tiny, TEXTS)
    assert after.candidate is not None
    assert after.candidate.time is not None
    assert after.candidate.time.step_s == pytest.approx(measured_s)
    assert after.candidate.memory.parts["learned here"] > 0


def test_an_emulated_board_learns_nothing_from_this_machine(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "plans.json"
    sheet = find_board("jetson-orin-nano-8gb").sheet(None)
    keeper = Planning(Limits(), lambda: emulate(profile(tmp_path), sheet), path)
    planned = keeper.plan(announced(), tiny, TEXTS)
    assert planned.plan.quantization == "bf16"
    told = planned.described(record(planned))
    assert planned.candidate is not None
    assert planned.candidate.time is not None
    assert told.predicted_peak_bytes is not None
    assert told.predicted_peak_bytes < planned.candidate.memory.total_bytes, "of this machine, which has no GPU"
    assert told.predicted_step_s is not None
    assert told.predicted_step_s > 2 * planned.candidate.time.step_s
    keeper.succeeded(planned, record(planned))
    assert not path.exists()
    keeper.ran_out(planned)
    assert len(decode_history(path.read_bytes()).outcomes) == 1


def test_a_device_that_was_not_measured_does_what_its_owner_says(tmp_path: Path, tiny: Path) -> None:
    read = read_profile(tmp_path, quantization="auto", max_rank=0)
    path = tmp_path / "plans.json"
    with pytest.raises(CannotTakePart, match=r"nothing can be planned: this device was not measured"):
        Planning(Limits(), lambda: read, path).plan(announced(), tiny, TEXTS)
    pinned = Planning(Limits(max_rank=4, quantization="int8"), lambda: read, path)
    planned = pinned.plan(announced(), tiny, TEXTS)
    assert (planned.plan.rank, planned.plan.quantization, planned.candidate) == (4, "int8", None)
    pinned.ran_out(planned)
    assert not path.exists()
    assert "was not measured" in planned.described(record(planned)).plan_reason


def test_experience_that_cannot_be_read_is_begun_anew(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "plans.json").write_bytes(b"\x00 not json")
    assert planning(tmp_path).plan(announced(), tiny, TEXTS).plan.rank == 8
