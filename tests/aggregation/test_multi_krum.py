from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefed.aggregation.multi_krum import multi_krum_scores


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 10**6))
def test_scores_are_sums_of_squared_distances_to_the_nearest(byzantine, more, seed):
    count = 2 * byzantine + 3 + more
    points = (
        np.random.default_rng(seed).standard_normal((count, 5)) + 3.0
    )  # away from the origin, which is no neighbour
    found = multi_krum_scores(points @ points.T, byzantine)
    for at in range(count):
        squares = sorted(float(np.sum((points[at] - other) ** 2)) for index, other in enumerate(points) if index != at)
        assert found[at] == pytest.approx(sum(squares[: count - byzantine - 2]), rel=1e-9)


def test_copies_of_one_update_have_no_distance():
    points = np.tile(np.array([[1e3, 1e-3, 7.0]]), (5, 1))
    np.testing.assert_allclose(multi_krum_scores(points @ points.T, 1), 0.0, atol=1e-6)
