from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.aggregation.server_optimizers import ServerOptimizer, step_elementwise, step_matrix
from edgefed.errors import ConfigError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.merge import Term

NAMES = ["averaging", "momentum", "adam", "adamw"]


def options(name: str, rate: float) -> ServerOptimizer:
    return ServerOptimizer(name, rate, weight_decay=0.05 if name == "adamw" else 0.0)


def reference(optimizer: ServerOptimizer, value: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """The published rules, in float64."""
    first, second = np.zeros_like(value), np.zeros_like(value)
    for gradient in gradients:
        if optimizer.name == "averaging":
            value = value + optimizer.rate * gradient
        elif optimizer.name == "momentum":
            first = optimizer.beta1 * first + gradient
            value = value + optimizer.rate * first
        else:
            first = optimizer.beta1 * first + (1 - optimizer.beta1) * gradient
            second = optimizer.beta2 * second + (1 - optimizer.beta2) * gradient**2
            value = value * (1 - optimizer.rate * optimizer.weight_decay)
            value = value + optimizer.rate * first / (np.sqrt(second) + optimizer.epsilon)
    return value


def draw(seed: int, rank: int) -> LowRank:
    rng = np.random.default_rng(seed)
    return LowRank(
        rng.standard_normal((13, rank)).astype(np.float32), rng.standard_normal((rank, 11)).astype(np.float32)
    )


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.floats(0.01, 1.0), st.integers(1, 5), st.integers(0, 10**6))
def test_steps_on_arrays_follow_the_published_rules(name, rate, steps, seed):
    rng = np.random.default_rng(seed)
    gradients = list(rng.standard_normal((steps, 4, 3)))
    start = rng.standard_normal((4, 3))
    optimizer = options(name, rate)
    value, slots = start.astype(np.float32), {}
    for gradient in gradients:
        value, slots = step_elementwise(optimizer, value, gradient.astype(np.float32), slots)
        assert value.dtype == np.float32
        assert all(array.dtype == np.float32 for array in slots.values())
    np.testing.assert_allclose(value, reference(optimizer, start, gradients), atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.floats(0.01, 1.0), st.integers(1, 4), st.integers(0, 10**6))
def test_steps_on_matrices_are_the_dense_steps_where_nothing_is_truncated(name, rate, steps, seed):
    optimizer = options(name, rate)
    start = draw(seed, 2)
    gradients = [[Term.of(draw(seed + 10 * step + at, 2), 0.5 - at) for at in range(2)] for step in range(steps)]
    dense = [sum(term.weight * term.load().dense().astype(np.float64) for term in gradient) for gradient in gradients]
    value, slots = start, {}
    for gradient in gradients:
        value, slots = step_matrix(optimizer, value, gradient, slots, rank=11)
    expected = reference(optimizer, start.dense().astype(np.float64), dense)
    np.testing.assert_allclose(value.dense(), expected, atol=1e-4 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("name", NAMES)
def test_the_value_itself_may_be_part_of_the_gradient(name):
    optimizer, start, along = options(name, 0.3), draw(0, 2), draw(1, 2)
    found, _ = step_matrix(optimizer, start, [Term.of(along)], {}, value_weight=-1.0, rank=11)
    named, _ = step_matrix(optimizer, start, [Term.of(along), Term.of(start, -1.0)], {}, rank=11)
    np.testing.assert_allclose(found.dense(), named.dense(), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_cut_to_the_rank_and_completed_where_a_seed_is_given(name):
    optimizer = options(name, 0.5)
    cut, _ = step_matrix(optimizer, draw(0, 4), [Term.of(draw(1, 4))], {}, rank=3)
    assert cut.rank == 3
    low = LowRank.zero((13, 11))
    filled, _ = step_matrix(optimizer, low, [Term.of(draw(1, 1), 1e-30)], {}, rank=3, seed=1)
    assert filled.rank == 3
    np.testing.assert_allclose(filled.right @ filled.right.T, np.eye(3), atol=1e-5)
    if name in ("averaging", "momentum"):
        assert step_matrix(optimizer, low, [Term.of(draw(1, 1))], {}, rank=3)[0].rank == 1


def test_momentums_buffer_stays_low_rank_and_near_the_dense_one():
    """A signal that lasts and noise that does not: the buffer drops noise, and x stays within the bound."""
    rank, rounds = 3, 12
    optimizer = ServerOptimizer("momentum", 0.5)
    signal = draw(0, rank)
    value, slots = LowRank.zero((13, 11)), {}
    dense = []
    for at in range(rounds):
        noise = draw(at + 1, 4).scaled(0.02)
        value, slots = step_matrix(optimizer, value, [Term.of(signal), Term.of(noise)], slots, rank=rank)
        assert slots["left"].shape == (13, 2 * rank)
        dense.append(signal.dense().astype(np.float64) + noise.dense())
    expected = reference(optimizer, np.zeros((13, 11)), dense)
    assert np.linalg.norm(value.dense() - expected) < 0.02 * np.linalg.norm(expected)


def test_default_rates_are_the_names_own():
    assert ServerOptimizer("averaging").rate == ServerOptimizer("momentum").rate == 1.0
    assert ServerOptimizer("adam").rate == ServerOptimizer("adamw").rate == 1e-3
    assert ServerOptimizer("adam", 0.1).rate == 0.1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "sgd"}, "'sgd'; allowed are averaging, momentum, adam, adamw"),
        ({"learning_rate": 0.0}, "learning_rate .* 0.0; it must be over 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"name": "momentum", "beta1": 1.0}, r"beta1 .* in \[0, 1\)"),
        ({"name": "adam", "beta2": -0.1}, "beta2"),
        ({"name": "adam", "epsilon": 0.0}, "epsilon"),
        ({"name": "adamw", "weight_decay": -1.0}, "weight_decay"),
        ({"beta1": 0.5}, "beta1 has no effect on averaging; it belongs to momentum, adam, adamw"),
        ({"name": "momentum", "beta2": 0.5}, "beta2 has no effect on momentum"),
        ({"name": "adam", "weight_decay": 0.1}, "weight_decay has no effect on adam"),
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        ServerOptimizer(**given)
