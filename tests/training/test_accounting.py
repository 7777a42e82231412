from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.tasks import Evaluation, LoraMethod, ModelReference, Privacy, SummarizationTask, Training
from edgefed.training.accounting import cost_of, epsilon_of
from edgefed.training.privacy_budget import PrivacySpent, SpentSteps

pytestmark = pytest.mark.torch


def spent(noise: float, rate: float, steps: int) -> SpentSteps:
    return SpentSteps(noise_multiplier=noise, sample_rate=rate, steps=steps)


def exact_gaussian_epsilon(noise: float, steps: int, delta: float) -> float:
    """ε of the Gaussian mechanism without sampling, composed: Balle & Wang (arXiv 1805.06530), Theorem 8, bisected."""
    mu = math.sqrt(steps) / noise

    def delta_at(epsilon: float) -> float:
        def phi(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2))

        return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)

    low, high = 0.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


def test_nothing_spent_is_nothing() -> None:
    assert epsilon_of([], 1e-5) == 0.0


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 16), (10.0, 300), (2.0, 50)])
def test_without_sampling_it_lies_just_above_what_is_exact(noise: float, steps: int) -> None:
    exact = exact_gaussian_epsilon(noise, steps, 1e-5)
    assert exact <= epsilon_of([spent(noise, 1.0, steps)], 1e-5) <= 1.15 * exact


def test_with_sampling_it_lies_above_the_tighter_accountant() -> None:
    from opacus.accountants import PRVAccountant

    tighter = PRVAccountant()
    tighter.history = [(1.0, 0.05, 160)]
    bound = tighter.get_epsilon(delta=1e-5, eps_error=0.01)
    assert 0.99 * bound <= epsilon_of([spent(1.0, 0.05, 160)], 1e-5) <= 1.3 * bound


@settings(max_examples=30)
@given(
    noise=st.floats(0.3, 20), rate=st.floats(1e-3, 1), steps=st.integers(1, 2000), delta=st.sampled_from([1e-7, 1e-4])
)
def test_more_steps_less_noise_and_more_sampling_cost_more(noise: float, rate: float, steps: int, delta: float) -> None:
    epsilon = epsilon_of([spent(noise, rate, steps)], delta)
    assert epsilon >= 0
    assert epsilon_of([spent(noise, rate, steps), spent(noise, rate, steps)], delta) >= epsilon
    assert epsilon_of([spent(noise, rate, 2 * steps)], delta) >= epsilon
    assert epsilon_of([spent(noise * 2, rate, steps)], delta) <= epsilon * (1 + 1e-9)
    assert epsilon_of([spent(noise, rate / 2, steps)], delta) <= epsilon * (1 + 1e-9)


def test_a_round_costs_what_its_steps_cost_on_top_of_all_before() -> None:
    announced = RoundOpen(
        run="r",
        round=1,
        rounds=1,
        kind="train",
        model=ModelReference(name="m"),
        task=SummarizationTask(),
        method=LoraMethod(),
        training=Training(local_steps=10, batch_size=8),
        evaluation=Evaluation(),
        evaluates=False,
        deadline_s=1.0,
        privacy=Privacy(example_noise_multiplier=1.0, delta=1e-4),
        seed=0,
        manifest=Manifest(),
    )
    earlier, elsewhere = spent(1.0, 0.1, 10), spent(2.0, 0.2, 5)
    cost = cost_of(announced, 80, PrivacySpent(this_run=[earlier], other_runs=[elsewhere], owners_delta=1e-6))
    assert cost is not None
    assert cost.steps == spent(1.0, 0.1, 10)
    assert cost.run_epsilon == pytest.approx(epsilon_of([spent(1.0, 0.1, 20)], 1e-4))
    assert cost.device_epsilon == pytest.approx(epsilon_of([spent(1.0, 0.1, 20), elsewhere], 1e-6))
    few = cost_of(announced, 5, PrivacySpent())
    assert few is not None
    assert few.steps.sample_rate == 1.0, "fewer examples than a batch: every step takes them all"
    for other in (
        msgspec.structs.replace(announced, kind="evaluate"),
        msgspec.structs.replace(announced, privacy=Privacy()),
    ):
        assert cost_of(other, 80, PrivacySpent()) is None
