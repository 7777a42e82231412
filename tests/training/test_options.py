from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import ConfigError
from edgefed.training.options import LoraOptions, TrainOptions


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TrainOptions(steps=0), "steps is 0; it must be at least 1"),
        (lambda: TrainOptions(steps=1, learning_rate=float("nan")), "learning_rate is nan"),
        (lambda: TrainOptions(steps=1, optimizer="adam"), "optimizer is 'adam'; it must be 'adamw' or 'sgd'"),  # type: ignore[arg-type]
        (lambda: LoraOptions(rank=0), "rank is 0"),
        (lambda: LoraOptions(rank=1, scaling="r"), "scaling is 'r'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_meant_is_refused(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]


def test_scales() -> None:
    assert LoraOptions(rank=4, alpha=16).scale == 4
    assert LoraOptions(rank=4, alpha=16, scaling="alpha/sqrt(r)").scale == 8


@given(st.integers(1, 50), st.integers(0, 60), st.sampled_from(["constant", "linear"]))
def test_the_learning_rate_rises_to_its_value_and_never_leaves_its_range(
    steps: int, warmup: int, schedule: str
) -> None:
    options = TrainOptions(steps=steps, warmup_steps=warmup, schedule=schedule, learning_rate=0.5)  # type: ignore[arg-type]
    rates = [options.learning_rate_at(step) for step in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)
    if warmup < steps:
        assert rates[max(warmup - 1, 0)] == 0.5
    if schedule == "constant":
        assert rates == sorted(rates)


def test_options_are_light() -> None:
    script = (
        "import sys, edgefed.training.options; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
