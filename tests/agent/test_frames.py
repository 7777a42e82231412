from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.agent.frames import (
    MAX_FRAME_BYTES,
    Answer,
    Bench,
    Benched,
    Cancel,
    Failed,
    Finished,
    Prepare,
    Prepared,
    Progress,
    Work,
    decode_answer,
    decode_request,
    encode_frame,
)
from edgefed.devices.compute import ComputeProfile, MachineProbe
from edgefed.devices.measurement import absent, measured
from edgefed.errors import WorkerError
from edgefed.protocol.records import MAX_STEP_RECORDS, RoundRecord, StepRecord
from edgefed.training.bench_work import BenchOutcome, BenchWork
from edgefed.training.round_work import TrainingSet

STEP = StepRecord(
    loss=5.5, data_s=1e-300, forward_s=0.2, backward_s=0.4, optimizer_s=0.05, source_tokens=512, target_tokens=64
)
RECORD = RoundRecord(
    device="a",
    round=2,
    rank=4,
    held_rank=0,
    quantization="fp32",
    examples=7,
    step_records=[STEP] * MAX_STEP_RECORDS,
)

MACHINE = MachineProbe(
    compute=ComputeProfile(
        hardware="cpu",
        threads=4,
        flops_per_s={"bf16": measured(1e11, "torch.mm")},
        memory_bandwidth_bytes_per_s=absent("not tried"),
    )
)

ANSWERS = [
    Prepared(
        model_path="/models/t5",
        fingerprint="f" * 64,
        training_set=TrainingSet(examples=7, source_tokens=9, target_tokens=5),
    ),
    Progress(stage="training", step=3, steps=16, loss=5.25),
    Finished(record=RECORD),
    Benched(outcome=BenchOutcome(record=RECORD, kind="bf16", machine=MACHINE, software="torch 2")),
    Failed(kind="data", message="line 3:\nnot JSON\u2028"),
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_come_back_as_they_went_in_one_line(answer: Answer) -> None:
    line = encode_frame(answer)
    assert decode_answer(line) == answer
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) < MAX_FRAME_BYTES


def test_requests_come_back_as_they_went(prepare: Prepare, work: Work) -> None:
    bench = Bench(work=BenchWork(directory="model", shape="flan-t5-xl", quantization="nf4"))
    for request in (prepare, work, bench, Cancel()):
        line = encode_frame(request)
        assert decode_request(line) == request
        assert line.count(b"\n") == 1


def test_one_side_does_not_take_what_the_other_says(prepare: Prepare) -> None:
    with pytest.raises(WorkerError, match="not an answer"):
        decode_answer(encode_frame(prepare))
    with pytest.raises(WorkerError, match="not a request"):
        decode_request(encode_frame(ANSWERS[0]))


@pytest.mark.parametrize(
    "line",
    [b"\n", b"null\n", b'{"type":"prepared"}\n', b'{"type":"progress","stage":"resting"}\n', b"[" * 99999, b"\xff\n"],
)
def test_what_is_no_frame_is_refused(line: bytes) -> None:
    with pytest.raises(WorkerError):
        decode_answer(line)
    with pytest.raises(WorkerError):
        decode_request(line)


@given(line=st.binary(max_size=100))
def test_random_bytes_are_refused(line: bytes) -> None:
    with pytest.raises(WorkerError):
        decode_answer(line)
    with pytest.raises(WorkerError):
        decode_request(line)
