"""Windows that follow each other with time between them, as one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.devices.usage import Energy, HardwareUse
from edgefed.devices.usage_sums import joined

NOTHING = HardwareUse(window_s=5.0, samples=0, energy=Energy(reason="window too short"))


def window(window_s: float, watts: float, share: float = 1.0) -> HardwareUse:
    joules = watts * window_s * share
    return HardwareUse(
        window_s=window_s,
        samples=int(2 * window_s),
        energy=Energy(joules=joules, mean_w=watts, method="rapl", scope="package", measured_share=share),
        cpu_percent=watts / 4,
        temperature_max_c=watts,
        throttled_s=1.0,
        memory_available_min_bytes=int(1e9 - watts),
        worker_peak_resident_bytes=int(1e8 + watts),
        sampling_cpu_s=0.01,
    )


windows = st.builds(window, st.floats(2, 1000), st.floats(1, 400), st.floats(0.1, 1))


def test_one_window_stays_what_it_is() -> None:
    assert joined([NOTHING]) is NOTHING


@given(st.lists(windows, min_size=2, max_size=6))
def test_sums_means_and_extremes(parts: list[HardwareUse]) -> None:
    whole = joined(parts)
    assert whole.window_s == pytest.approx(sum(one.window_s for one in parts))
    assert whole.samples == sum(one.samples for one in parts)
    assert whole.energy.joules == pytest.approx(sum(one.energy.joules or 0 for one in parts))
    assert whole.energy.mean_w is not None
    measured_s = whole.window_s * whole.energy.measured_share
    assert whole.energy.mean_w * measured_s == pytest.approx(whole.energy.joules)
    watts = [one.energy.mean_w or 0 for one in parts]
    assert min(watts) <= whole.energy.mean_w * (1 + 1e-9)
    assert whole.energy.mean_w <= max(watts) * (1 + 1e-9)
    assert whole.temperature_max_c == max(watts)
    assert whole.throttled_s == len(parts)
    assert whole.memory_available_min_bytes == int(1e9 - max(watts))
    assert whole.worker_peak_resident_bytes == int(1e8 + max(watts))
    assert whole.gpu_percent is None
    assert msgspec.convert(msgspec.to_builtins(whole), HardwareUse) == whole


def test_a_window_that_knows_nothing_lowers_the_share_and_gives_its_reason() -> None:
    whole = joined([NOTHING, window(15.0, 10.0)])
    assert whole.energy.joules == pytest.approx(150.0)
    assert whole.energy.measured_share == pytest.approx(0.75)
    assert (whole.energy.method, whole.energy.reason) == ("rapl", "window too short")
    assert whole.cpu_percent == 2.5


def test_windows_that_know_nothing_know_nothing_together() -> None:
    whole = joined([NOTHING, NOTHING])
    assert (whole.energy.joules, whole.energy.reason) == (None, "window too short")
    assert (whole.cpu_percent, whole.throttled_s, whole.temperature_max_c) == (None, None, None)
