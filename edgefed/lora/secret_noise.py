"""Random numbers that nobody can foretell, for noise that hides something: from the operating system, not a seed."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["secret_normal", "secret_uniform"]

_BITS = 53
"""Of a uniform number: what a double holds."""


def secret_normal(shape: Sequence[int]) -> NDArray[np.float64]:
    """Returns standard normal numbers, by Box and Muller's transform."""
    count = math.prod(shape)
    pairs = -(-count // 2)
    radius = np.sqrt(-2.0 * np.log(secret_uniform(pairs)))
    angle = 2.0 * np.pi * secret_uniform(pairs)
    drawn: NDArray[np.float64] = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return drawn.reshape(tuple(shape))


def secret_uniform(count: int) -> NDArray[np.float64]:
    """Returns numbers in (0, 1], equally spaced."""
    whole = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(64 - _BITS)
    uniform: NDArray[np.float64] = (whole.astype(np.float64) + 1.0) * 2.0**-_BITS
    return uniform
