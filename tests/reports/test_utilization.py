from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.devices.usage import Energy, HardwareUse
from edgefed.protocol.records import RoundRecord
from edgefed.reports.utilization import Figure, Utilization, measure, summarize

seconds = st.floats(0.001, 1e4)
RECORD = RoundRecord(
    device="d", round=1, rank=4, held_rank=4, quantization="fp32", examples=10, steps=10, data_s=1.0, forward_s=3.0,
    backward_s=5.0, optimizer_s=1.0, source_tokens=900, target_tokens=100, download_bytes=2000, download_s=0.5,
    upload_bytes=1000, upload_s=1.5, peak_memory_bytes=2_000_000_000, predicted_peak_bytes=1_900_000_000,
    predicted_step_s=1.1, model_flops=4e12, live_peak_flops_per_s=2e12, sheet_peak_flops_per_s=4e12,
    use=HardwareUse(window_s=20.0, samples=40, cpu_percent=50.0, temperature_max_c=61.0, throttled_s=0.0,
                    energy=Energy(joules=100.0, mean_w=5.0, measured_share=1.0, method="rapl", scope="package")),
)  # fmt: skip


@st.composite
def records(draw: st.DrawFn) -> RoundRecord:
    flops = st.none() | st.floats(1, 1e15)
    energy = Energy(reason="no sensor")
    if draw(st.booleans()):
        watts = draw(st.floats(0.1, 500))
        energy = Energy(joules=watts * 20, mean_w=watts, measured_share=1.0, method="rapl", scope="package")
    use = HardwareUse(window_s=draw(seconds), samples=1, energy=energy, cpu_percent=draw(st.none() | st.floats(0, 100)))
    return msgspec.structs.replace(
        RECORD,
        data_s=draw(seconds),
        forward_s=draw(seconds),
        backward_s=draw(seconds),
        optimizer_s=draw(seconds),
        steps=draw(st.integers(0, 100)),
        source_tokens=draw(st.integers(0, 10**6)),
        upload_s=draw(st.none() | seconds),
        download_s=draw(st.just(0.0) | seconds),
        model_flops=draw(flops),
        live_peak_flops_per_s=draw(flops),
        sheet_peak_flops_per_s=draw(flops),
        peak_memory_bytes=draw(st.none() | st.integers(1, 10**12)),
        peak_resident_bytes=None,
        use=draw(st.none() | st.just(use)),
    )


def figures(use: Utilization) -> dict[str, Figure]:
    return {name: getattr(use, name) for name in use.__struct_fields__}


def test_the_definitions() -> None:
    use = measure(RECORD)
    assert use.compute_s == Figure(10.0)
    assert use.flops_per_s == Figure(4e11)
    assert use.mfu_live == Figure(pytest.approx(0.2))
    assert use.mfu_sheet == Figure(pytest.approx(0.1))
    assert use.tokens_per_s == Figure(100.0)
    assert (use.mean_w, use.joules) == (Figure(5.0), Figure(100.0))
    assert use.tokens_per_s_per_w == Figure(pytest.approx(20.0))
    assert use.granularity == Figure(pytest.approx(5.0))
    assert use.memory_error == Figure(pytest.approx(-0.05))
    assert use.step_s == Figure(1.0)
    assert use.step_error == Figure(pytest.approx(0.1))
    assert (use.download_bytes_per_s.value, use.upload_bytes_per_s.value) == pytest.approx((4000, 1000 / 1.5))
    assert use.throttled_s == Figure(0.0), "measured, and it was none"


@given(st.lists(records(), max_size=5))
def test_a_figure_is_a_number_or_has_a_reason(some: list[RoundRecord]) -> None:
    for name, figure in figures(summarize(some)).items():
        if figure.value is None:
            assert figure.reason, name
        else:
            assert math.isfinite(figure.value)
            assert figure.value >= 0 or name.endswith("_error")


@given(records())
def test_a_share_of_the_sheet_is_a_share_of_the_measured_peak_scaled(record: RoundRecord) -> None:
    use = measure(record)
    if use.mfu_live.value is None or use.mfu_sheet.value is None:
        return
    live, sheet = record.live_peak_flops_per_s, record.sheet_peak_flops_per_s
    assert live is not None
    assert sheet is not None
    assert use.mfu_live.value * live == pytest.approx(use.mfu_sheet.value * sheet)


@given(st.lists(records(), min_size=1, max_size=6))
def test_a_rate_over_rounds_lies_between_those_of_the_rounds(some: list[RoundRecord]) -> None:
    whole = figures(summarize(some))
    for name in ("mfu_live", "tokens_per_s", "step_s", "mean_w", "granularity", "cpu_percent"):
        single = [value for record in some if (value := figures(measure(record))[name].value) is not None]
        value = whole[name].value
        assert (value is None) == (not single)
        if value is not None:
            assert min(single) * (1 - 1e-9) <= value <= max(single) * (1 + 1e-9)


@given(records(), st.integers(2, 4))
def test_the_same_round_again_changes_sums_and_no_rate(record: RoundRecord, times: int) -> None:
    one, many = figures(measure(record)), figures(summarize([record] * times))
    for name, figure in one.items():
        factor = times if name in ("compute_s", "communication_s", "joules", "throttled_s") else 1
        if figure.value is None:
            assert many[name].value is None
        else:
            assert many[name].value == pytest.approx(figure.value * factor)


def test_what_is_missing_is_said() -> None:
    poor = RoundRecord(
        device="d", round=1, rank=4, held_rank=4, quantization="fp32", examples=1, steps=1, forward_s=1.0
    )
    use = measure(poor)
    assert use.mfu_live.reason == "the device did not count model FLOPs; no peak rate was measured on the device"
    assert use.joules.reason == "power was not sampled"
    denied = HardwareUse(window_s=1.0, samples=2, energy=Energy(reason="energy_uj: permission denied"))
    assert (
        measure(msgspec.structs.replace(poor, use=denied)).tokens_per_s_per_w.reason == "energy_uj: permission denied"
    )
    assert measure(msgspec.structs.replace(poor, steps=0, forward_s=0.0)).tokens_per_s.reason == "nothing was trained"


def test_a_round_that_lacks_one_number_is_left_out_of_both_sums() -> None:
    unknown = msgspec.structs.replace(RECORD, model_flops=None, forward_s=1000.0)
    mfu = summarize([RECORD, unknown]).mfu_live
    assert mfu.value == pytest.approx(0.2)
    assert mfu.reason.startswith("from 1 of 2 rounds")


def test_nothing_at_all() -> None:
    assert {figure.value for figure in figures(summarize([])).values()} == {None}


def test_private_training_has_no_token_rate_and_says_why() -> None:
    private = msgspec.structs.replace(
        RECORD, epsilon=2.0, delta=1e-5, source_tokens=0, target_tokens=0, model_flops=None
    )
    use = measure(private)
    assert use.tokens_per_s.value is None
    assert "private training" in use.tokens_per_s.reason
    assert use.tokens_per_s_per_w.value is None
    assert use.step_s.value == measure(RECORD).step_s.value
    mixed = summarize([RECORD, private])
    assert mixed.tokens_per_s.value == measure(RECORD).tokens_per_s.value, "the other round is not thinned by it"
