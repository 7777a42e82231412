"""Multi-Krum: the updates that lie nearest to their neighbours are summed, the others are left out.

Blanchard, El Mhamdi, Guerraoui, Stainer: "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, arXiv 1703.02757. With n updates of which f may be anything, an update's score is the sum of its squared
distances to its n − f − 2 nearest others; the n − f updates of the lowest scores are kept. Needs n >= 2f + 3.

Different from the paper: what is kept is summed with its own weights and not averaged evenly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["multi_krum_scores"]


def multi_krum_scores(inner: NDArray[np.float64], byzantine: int) -> NDArray[np.float64]:
    """The score of each update: low is close to others.

    Args:
        inner: (n, n) inner products of the updates.
        byzantine: f; n must be at least 2f + 3.

    Returns:
        (n,) sums of squared distances.
    """
    squares = np.diag(inner)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * inner, 0.0)
    np.fill_diagonal(distances, np.inf)
    nearest = len(inner) - byzantine - 2
    return np.asarray(np.sort(distances, axis=1)[:, :nearest].sum(axis=1), np.float64)
