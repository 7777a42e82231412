from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from edgefed.planner.history import History, Outcome, decode_history
from tests.planner.machines import GIB, machine


def outcome(**changes: Any) -> Outcome:
    values: dict[str, Any] = {
        "model": "m",
        "hardware": "cpu",
        "quantization": "fp32",
        "predicted_peak_bytes": GIB,
        "decided_bytes": GIB,
        "predicted_step_s": 1.0,
        "peak_bytes": GIB,
        "step_s": 1.0,
        "available_bytes": 16 * GIB,
    }
    return Outcome(**values | changes)


def of(*outcomes: Outcome) -> History:
    return History(outcomes=outcomes)


def test_the_worst_peak_and_the_median_step_correct() -> None:
    seen = of(
        outcome(peak_bytes=round(1.3 * GIB), step_s=2.0), outcome(step_s=8.0), outcome(peak_bytes=GIB // 2, step_s=3.0)
    )
    assert round(seen.memory_correction("m", "cpu", "fp32"), 6) == 1.3
    assert seen.time_correction("m", "cpu", "fp32") == 3.0


def test_what_was_not_seen_is_not_corrected_but_for_time() -> None:
    seen = of(outcome(peak_bytes=2 * GIB, step_s=4.0))
    assert seen.memory_correction("m", "cpu", "nf4") == 1.0
    assert seen.memory_correction("other", "cpu", "fp32") == 1.0
    assert seen.time_correction("m", "cpu", "nf4") == 4.0  # this machine is slower than thought, in all probability
    assert seen.time_correction("m", "cuda", "fp32") == 1.0


@given(st.floats(1e-6, 1e6), st.integers(1, 2**40))
def test_corrections_stay_within_reason(step_s: float, peak_bytes: int) -> None:
    seen = of(outcome(step_s=step_s, peak_bytes=peak_bytes))
    assert 0.7 <= seen.memory_correction("m", "cpu", "fp32") <= 2.0
    assert 0.1 <= seen.time_correction("m", "cpu", "fp32") <= 20.0


def test_a_plan_that_ran_out_speaks_against_what_needs_as_much() -> None:
    failed = outcome(peak_bytes=None, step_s=None, plan="rank 8")
    seen = of(failed)
    here = machine(memory_available_bytes=16 * GIB)
    assert seen.ran_out("m", here, GIB) is failed
    assert seen.ran_out("m", here, round(0.94 * GIB)) is None
    assert seen.ran_out("other", here, GIB) is None
    assert seen.ran_out("m", machine(memory_available_bytes=18 * GIB), GIB) is None
    assert of(outcome()).ran_out("m", here, GIB) is None


def test_only_the_latest_is_kept_and_survives_the_disk() -> None:
    seen = History()
    for number in range(100):
        seen = seen.after(outcome(available_bytes=number))
    assert len(seen.outcomes) == 64
    assert seen.outcomes[-1].available_bytes == 99
    assert decode_history(msgspec.json.encode(seen)) == seen


def test_what_cannot_be_read_is_no_experience() -> None:
    for payload in (b"", b"{", b"[1]", b'{"outcomes": [{"model": 3}]}', b"\xff\xfe"):
        assert decode_history(payload) == History()
