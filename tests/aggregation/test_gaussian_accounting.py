from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.aggregation.gaussian_accounting import _delta, gaussian_epsilon


def test_no_release_costs_nothing_and_next_to_no_noise_costs_everything() -> None:
    assert gaussian_epsilon(1.0, 0, 1e-5) == 0.0
    assert gaussian_epsilon(1e-6, 1, 1e-5) == math.inf
    assert gaussian_epsilon(1e9, 1, 1e-5) == 0.0, "δ alone covers what is left"


@pytest.mark.parametrize(
    ("noise", "releases", "delta", "epsilon"),
    # Made once by opacus 1.6's PRV accountant without sampling, eps_error = 0.001; it rounds upwards.
    [(1.0, 1, 1e-5, 4.3784), (2.0, 4, 1e-5, 4.3784), (4.0, 10, 1e-6, 3.7484), (8.0, 200, 1e-7, 10.2905)],
)
def test_known_values(noise: float, releases: int, delta: float, epsilon: float) -> None:
    assert epsilon - 0.002 < gaussian_epsilon(noise, releases, delta) < epsilon


@given(noise=st.floats(0.1, 100), releases=st.integers(1, 10_000), delta=st.sampled_from([1e-9, 1e-5, 1e-2]))
def test_it_is_the_smallest_epsilon_that_holds_and_grows_with_every_release(
    noise: float, releases: int, delta: float
) -> None:
    epsilon = gaussian_epsilon(noise, releases, delta)
    mu = math.sqrt(releases) / noise
    assert _delta(mu, epsilon) <= delta * (1 + 1e-6)
    if 1e-6 < epsilon < math.inf:
        assert _delta(mu, epsilon * (1 - 1e-6)) > delta * (1 - 1e-4)
    assert gaussian_epsilon(noise, releases + 1, delta) >= epsilon
    assert gaussian_epsilon(noise * 2, releases * 4, delta) == pytest.approx(epsilon, rel=1e-6, abs=1e-9)
