"""Peaks from clocks: they reproduce what makers publish, and nothing is made up for what a GPU does not have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.devices.gpu_rates import RateType, flops_per_clock_per_sm, peak_flops_per_s


@pytest.mark.parametrize(
    ("sm_count", "clock_hz", "capability", "data_type", "published"),
    [
        (1, 0.9216e9, 5.3, "fp16", 0.47e12),  # Jetson Nano
        (2, 1.30e9, 6.2, "fp16", 1.33e12),  # TX2
        (6, 1.1e9, 7.2, "fp32", 0.845e12),  # Xavier NX
        (108, 1.41e9, 8.0, "bf16", 312e12),  # A100
        (108, 1.41e9, 8.0, "fp32", 19.5e12),
        (108, 1.41e9, 8.0, "int8", 624e12),
        (28, 1.777e9, 8.6, "fp32", 12.74e12),  # RTX 3060
        (16, 1.3005e9, 8.7, "fp32", 5.3e12),  # AGX Orin
        (16, 1.3005e9, 8.7, "int8", 85e12),
        (128, 2.52e9, 8.9, "bf16", 165.2e12),  # RTX 4090
        (128, 2.52e9, 8.9, "int8", 660.6e12),
        (132, 1.83e9, 9.0, "bf16", 989e12),  # H100 SXM
        (132, 1.83e9, 9.0, "int8", 1979e12),
        (20, 1.575e9, 11.0, "bf16", 258.5e12),  # Thor
        (170, 2.407e9, 12.0, "bf16", 209.5e12),  # RTX 5090
        (170, 2.407e9, 12.0, "int8", 838e12),
    ],
)
def test_published_peaks_follow_from_clocks(
    sm_count: int, clock_hz: float, capability: float, data_type: RateType, published: float
) -> None:
    assert peak_flops_per_s(sm_count, clock_hz, capability, data_type) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("capability", [5.3, 6.2, 7.2])
def test_no_bf16_before_ampere(capability: float) -> None:
    assert flops_per_clock_per_sm(capability, "bf16") is None
    assert peak_flops_per_s(8, 1e9, capability, "bf16") is None


def test_a_capability_that_nobody_wrote_down_has_no_peak() -> None:
    assert peak_flops_per_s(8, 1e9, 99.0, "fp32") is None


@given(st.integers(1, 200), st.floats(1e8, 3e9), st.sampled_from([8.0, 8.6, 8.7, 8.9, 9.0, 11.0, 12.0]))
def test_fewer_bits_are_never_slower(sm_count: int, clock_hz: float, capability: float) -> None:
    peaks = [peak_flops_per_s(sm_count, clock_hz, capability, kind) for kind in ("fp32", "bf16", "int8")]
    assert peaks == sorted(peaks, key=lambda peak: peak or 0.0)
    assert peak_flops_per_s(2 * sm_count, clock_hz, capability, "bf16") == 2 * (peaks[1] or 0.0)
