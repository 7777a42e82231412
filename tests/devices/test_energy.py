"""Joules from readings of power and of counters: exact where they can be, null where nobody knows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.devices.energy import GAP_PERIODS, MIN_WINDOW_S, EnergyMeter
from edgefed.devices.usage import Energy

PERIOD_S = 0.5

Reading = tuple[float, "float | None", "float | None"]
"""When, watts, joules of the counter."""

watts = st.floats(0.1, 2000)
steps = st.lists(st.floats(0.01, GAP_PERIODS * PERIOD_S - 0.001), min_size=8, max_size=60)


def metered(
    readings: list[Reading], *, began_s: float | None = None, until_s: float | None = None, counted: bool = True
) -> Energy:
    meter = EnergyMeter(
        began_s=readings[0][0] if began_s is None else began_s,
        period_s=PERIOD_S,
        method_integrated="nvml-integrated",
        method_counted="nvml-counter" if counted else None,
        scope="gpu",
        coverage="the GPU's board",
    )
    for now_s, w, j in readings:
        meter.read(now_s, watts=w, joules=j)
    return meter.energy(readings[-1][0] if until_s is None else until_s)


def moments(since_each_s: list[float], began_s: float = 0.0) -> list[float]:
    return list(itertools.accumulate(since_each_s, initial=began_s))


@given(watts, steps, st.floats(0, 1e6))
def test_constant_power_is_exact_however_unevenly_it_is_read(w: float, since: list[float], began_s: float) -> None:
    at = moments(since, began_s)
    window_s = at[-1] - at[0]
    energy = metered([(t, w, None) for t in at])
    if window_s < MIN_WINDOW_S:
        assert energy.joules is None
        assert energy.reason.startswith("window too short")
        return
    assert energy.joules == pytest.approx(w * window_s)
    assert energy.mean_w == pytest.approx(w)
    assert energy.measured_share == pytest.approx(1)
    assert (energy.method, energy.scope, energy.coverage, energy.reason) == (
        "nvml-integrated", "gpu", "the GPU's board", "",
    )  # fmt: skip


@given(st.floats(0.1, 100), st.floats(0, 50), steps)
def test_a_ramp_of_power_is_exact(start_w: float, w_per_s: float, since: list[float]) -> None:
    at = moments([*since, 1.0, 1.0])
    energy = metered([(t, start_w + w_per_s * t, None) for t in at])
    assert energy.joules == pytest.approx(start_w * at[-1] + w_per_s * at[-1] ** 2 / 2)


@given(st.lists(st.tuples(st.floats(0.4, 1.5), watts), min_size=12, max_size=40), st.data())
def test_windows_that_meet_add_up(readings: list[tuple[float, float]], data: st.DataObject) -> None:
    at = moments([since for since, _ in readings])
    counted_j = moments([w for _, w in readings])
    whole: list[Reading] = [
        (t, w, j) for t, (_, w), j in zip(at, [(0.0, 1.0), *readings], counted_j, strict=True)
    ]  # fmt: skip
    cut = data.draw(st.integers(6, len(whole) - 7))
    for counted in (False, True):
        first, second, both = (metered(part, counted=counted) for part in (whole[: cut + 1], whole[cut:], whole))
        assert first.joules is not None
        assert second.joules is not None
        assert first.joules + second.joules == pytest.approx(both.joules)


@given(st.integers(int(GAP_PERIODS * PERIOD_S * 10) + 1, 10_000), watts)
def test_a_gap_in_the_readings_is_not_bridged(gap_tenths: int, w: float) -> None:
    gap_s = gap_tenths / 10  # as the reason says it: what lies between two tenths rounds either way
    before, after = moments([PERIOD_S] * 6), moments([PERIOD_S] * 8, 3.0 + gap_s)
    energy = metered([(t, w, None) for t in before + after])
    assert energy.joules == pytest.approx(w * 7.0)
    assert energy.mean_w == pytest.approx(w)
    assert energy.measured_share == pytest.approx(7.0 / (7.0 + gap_s))
    assert energy.reason == f"the sensor gave nothing for {gap_s:.1f} s of {7 + gap_s:.1f} s"


def test_missing_answers_are_a_gap_only_when_they_last() -> None:
    some: list[Reading] = [(t, None if t in (1.0, 1.5) else 10.0, None) for t in moments([PERIOD_S] * 8)]
    assert metered(some).joules == pytest.approx(40.0)
    many: list[Reading] = [(t, None if 1.0 <= t <= 2.0 else 10.0, None) for t in moments([PERIOD_S] * 10)]
    assert metered(many).joules == pytest.approx(30.0)
    assert metered(many).measured_share == pytest.approx(0.6)


def test_power_before_the_first_and_after_the_last_reading_is_not_guessed() -> None:
    energy = metered([(t, 8.0, None) for t in moments([PERIOD_S] * 8, 1.0)], began_s=0.0, until_s=10.0)
    assert energy.joules == pytest.approx(32.0)
    assert energy.measured_share == pytest.approx(0.4)


@given(st.floats(0, 1e9), watts, st.floats(2.0, 5000))
def test_a_counter_is_preferred_and_needs_no_reading_between(start_j: float, w: float, window_s: float) -> None:
    energy = metered([(0.0, 3 * w, start_j), (window_s, 3 * w, start_j + w * window_s)])
    assert energy.joules == pytest.approx(w * window_s, rel=1e-3, abs=1e-6)
    assert energy.method == "nvml-counter"
    assert energy.measured_share == 1


def test_a_counter_that_falls_was_reset_and_starts_anew() -> None:
    readings: list[Reading] = [(0.0, None, 900.0), (2.0, None, 920.0), (4.0, None, 5.0), (8.0, None, 45.0)]
    energy = metered(readings)
    assert energy.joules == pytest.approx(60.0)
    assert energy.measured_share == pytest.approx(0.75)


def test_power_takes_over_from_a_counter_that_answers_for_less_of_the_window() -> None:
    at = moments([PERIOD_S] * 20)
    energy = metered([(t, 7.0, 100 + 9 * t if t < 3 else None) for t in at])
    assert (energy.method, energy.joules) == ("nvml-integrated", pytest.approx(70.0))


def test_a_counter_that_stands_still_measures_nothing() -> None:
    at = moments([PERIOD_S] * 10)
    assert metered([(t, 6.0, 77.0) for t in at]).method == "nvml-integrated"
    stuck = metered([(t, None, 77.0) for t in at])
    assert stuck.joules is None
    assert "no power at all" in stuck.reason


@pytest.mark.parametrize("answer", [None, 0.0, -3.0, float("nan"), float("inf")])
def test_what_was_not_measured_is_null_with_a_reason_and_never_0(answer: float | None) -> None:
    energy = metered([(t, answer, answer) for t in moments([PERIOD_S] * 20)])
    assert (energy.joules, energy.mean_w, energy.method, energy.measured_share) == (None, None, "none", 0)
    assert energy.reason in (
        "the power sensor never answered", "the sensor shows no power at all, which no machine that runs takes",
    )  # fmt: skip


def test_a_moment_of_readings_in_a_long_window_is_too_little() -> None:
    energy = metered([(t, 5.0, None) for t in moments([PERIOD_S] * 3)], until_s=60.0)
    assert energy.joules is None
    assert energy.reason == "only 1.5 s of 60.0 s lie between readings of the power sensor, and a figure needs 2 s"


@given(st.lists(st.tuples(st.floats(0, 3), st.none() | st.floats(), st.none() | st.floats()), min_size=1, max_size=40))
def test_whatever_a_sensor_says_the_answer_is_a_figure_or_a_reason(answers: list[Reading]) -> None:
    at = moments([since for since, _, _ in answers])[1:]
    energy = metered([(t, w, j) for t, (_, w, j) in zip(at, answers, strict=True)], began_s=0.0)
    if energy.joules is None:
        assert energy.reason
        assert energy.mean_w is None
    else:
        assert energy.joules > 0
        assert 0 < energy.measured_share <= 1
