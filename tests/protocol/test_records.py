from __future__ import annotations

import msgspec
import pytest

from edgefed.protocol.chunks import CHUNK_HEADER_BYTES
from edgefed.protocol.records import MAX_STEP_RECORDS, EvaluationRecord, RoundRecord, StepRecord

LONGEST = 1.2345678901234567e-300


def step() -> StepRecord:
    return StepRecord(
        loss=-LONGEST,
        data_s=LONGEST,
        forward_s=LONGEST,
        backward_s=LONGEST,
        optimizer_s=LONGEST,
        source_tokens=2**53 - 1,
        target_tokens=2**53 - 1,
    )


def test_a_step_travels_as_a_row() -> None:
    row = StepRecord(
        loss=5.5, data_s=0.1, forward_s=0.2, backward_s=0.4, optimizer_s=0.05, source_tokens=512, target_tokens=64
    )
    assert msgspec.json.encode(row) == b"[5.5,0.1,0.2,0.4,0.05,512,64]"
    assert msgspec.json.decode(b"[5.5,0.1,0.2,0.4,0.05,512,64]", type=StepRecord) == row


def test_the_longest_record_fits_one_message_of_the_smallest_portable_size() -> None:
    record = RoundRecord(
        device="x" * 64,
        round=2**53 - 1,
        rank=4,
        held_rank=4,
        quantization="int8",
        examples=2**53 - 1,
        step_records=[step()] * MAX_STEP_RECORDS,
        evaluation=EvaluationRecord(loss=LONGEST, target_tokens=2**53 - 1, examples=2**53 - 1, evaluate_s=LONGEST),
    )
    assert len(msgspec.json.encode(record)) < 96 * 1024 + CHUNK_HEADER_BYTES


@pytest.mark.parametrize(
    ("row", "where"),
    [
        (b"[5.5,-0.1,0.2,0.4,0.05,512,64]", r"\$\[1\]"),
        (b"[5.5,0.1,0.2,0.4,0.05,-512,64]", r"\$\[5\]"),
        (b"[null,0.1,0.2,0.4,0.05,512,64]", r"\$\[0\]"),
        (b"[5.5,0.1,0.2]", "length"),
    ],
)
def test_a_wrong_row_is_refused(row: bytes, where: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=where):
        msgspec.json.decode(row, type=StepRecord)
