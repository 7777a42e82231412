from __future__ import annotations

import numpy as np
import pytest

from edgefed.lora.secret_noise import secret_normal, secret_uniform


def test_secret_numbers_are_normal() -> None:
    drawn = np.sort(secret_normal((3, 33_333)).ravel())
    assert drawn.size == 99_999
    for quantile, value in ((0.0228, -2.0), (0.1587, -1.0), (0.5, 0.0), (0.8413, 1.0), (0.9772, 2.0)):
        assert np.searchsorted(drawn, value) / drawn.size == pytest.approx(quantile, abs=0.008)
    assert not np.array_equal(secret_normal((9,)), secret_normal((9,)))
    assert secret_normal((0, 5)).shape == (0, 5)


def test_uniform_numbers_fill_the_unit_interval_and_are_never_zero() -> None:
    drawn = secret_uniform(100_000)
    assert 0.0 < drawn.min() < 1e-3
    assert 1.0 - 1e-3 < drawn.max() <= 1.0
    assert drawn.mean() == pytest.approx(0.5, abs=0.006)
