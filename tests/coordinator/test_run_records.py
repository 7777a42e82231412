"""What a report is made of: what a device says counts there as it does in the federation."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from edgefed.coordinator.answers import Answer
from edgefed.coordinator.evaluations import Credibility
from edgefed.coordinator.run_records import run_records
from edgefed.coordinator.store import Store
from edgefed.protocol.records import EvaluationRecord, RoundRecord
from edgefed.protocol.tasks import Evaluation, LoraMethod, SummarizationTask
from edgefed.reports.build import build_report

EVALUATION, TASK = Evaluation(max_examples=10), SummarizationTask(max_target_tokens=20)
IDENTITY = msgspec.to_builtins(
    {"fleet": "test", "model": {"name": "none"}, "method": LoraMethod(), "evaluation": EVALUATION, "task": TASK}
)


def answered(device: str, evaluation: EvaluationRecord) -> Answer:
    record = RoundRecord(
        device=device, round=1, rank=2, held_rank=2, quantization="fp32", examples=3, evaluation=evaluation
    )
    return Answer(
        round=1, device=device, sha256=device * 64, size_bytes=9, outcome="counted", record=record, received_unix_s=5.0
    )


def test_a_loss_is_reported_as_the_federation_has_it_whatever_a_device_claims(tmp_path: Path) -> None:
    """One that claims a thousand million tokens used to be the whole of the reported loss."""
    found = {
        "a": EvaluationRecord(loss=2.0, target_tokens=100, examples=10, evaluate_s=1.0),
        "b": EvaluationRecord(loss=9.0, target_tokens=10**9, examples=10, evaluate_s=1.0),
        "c": EvaluationRecord(loss=1e300, target_tokens=100, examples=10, evaluate_s=1.0),
    }
    with closing(Store.open(tmp_path / "run", IDENTITY)) as store:
        for device, evaluation in found.items():
            store.add_answer(answered(device, evaluation))
        report = build_report(run_records(store))
    weighed = [Credibility(EVALUATION, TASK).weigh(device, one) for device, one in found.items()]
    expected = sum(loss * tokens for loss, tokens in weighed) / sum(tokens for _, tokens in weighed)
    assert report.rounds[0].loss.value == pytest.approx(expected) == pytest.approx(20 / 3)
    evaluations = {row.device: row.record.evaluation for row in report.device_rounds if row.record is not None}
    assert evaluations["c"] is None, "what cannot be is not shown as 0"
