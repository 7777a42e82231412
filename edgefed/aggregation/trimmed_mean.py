"""Coordinate-wise trimmed mean: of each coordinate the f smallest and f largest values are left out.

Yin, Chen, Ramchandran, Bartlett: "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
arXiv 1803.01498. With at most f hostile devices whatever is left lies between the smallest and the largest honest value
of that coordinate, whatever they send. Needs more than 2f devices.

Different from the paper: what is left is averaged with the devices' own weights. With equal ones it is the paper's.
Where no weight is over p, a device has at most p / (1 − 2f·p) of a coordinate.

A coordinate has to mean the same for all. Entries of products do, whatever the ranks; so they are formed here, some
rows at a time, and their trimmed mean is a dense matrix. Entries of factors do where all train one rank from one start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefed.aggregation.method import Contribution
from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.merge import Term
from edgefed.lora.svd import Float32

__all__ = ["trimmed_gradient", "trimmed_mean"]

Gradient = Callable[[str, Sequence[tuple[float, Contribution]], tuple[int, int]], Sequence[Term]]

_BLOCK_BYTES = 64 << 20  # of rows whose values are sorted at a time
_ENTRY_BYTES = 32  # of one value: itself twice, its place, its weight and their product
_SLICE_RANK = 128  # a dense matrix enters a sum as slices of so many columns: merging stacks factors of that size


def trimmed_mean(values: Float32, weights: NDArray[np.float64], trim: int) -> Float32:
    """The weighted mean of what is left of each coordinate.

    Args:
        values: (n, ...), one entry per device.
        weights: (n,), over 0.
        trim: f; equal values are left out in the order of the devices.

    Returns:
        An array of one device's shape, each entry between the smallest and the largest value that was left.

    Raises:
        AdapterError: n is not over 2f.
    """
    if len(values) <= 2 * trim:
        raise AdapterError(f"{len(values)} updates are too few for leaving out {trim} on each side")
    order = np.argsort(values, axis=0, kind="stable")[trim : len(values) - trim]
    kept = np.take_along_axis(values, order, axis=0)
    own = weights[order]
    mean = (own * kept).sum(axis=0) / own.sum(axis=0)
    # the mean of equal values may leave their range by rounding
    return np.asarray(np.clip(mean, kept[0], kept[-1]), np.float32)


def trimmed_gradient(gradient: Gradient, trim: int) -> Gradient:
    """A method's pseudo-gradient with the trimmed mean in place of the mean.

    Args:
        gradient: the method's, linear in the weights: that of one device alone is what is trimmed.
        trim: f.
    """

    def trimmed(module: str, weighted: Sequence[tuple[float, Contribution]], shape: tuple[int, int]) -> list[Term]:
        rows, columns = shape
        weights = np.array([weight for weight, _ in weighted])
        height = max(1, _BLOCK_BYTES // (_ENTRY_BYTES * columns * len(weighted)))
        mean = np.empty(shape, np.float32)
        for top in range(0, rows, height):
            block = slice(top, min(rows, top + height))
            values = [_rows(gradient(module, [(1.0, one)], shape), block) for _, one in weighted]
            mean[block] = trimmed_mean(np.stack(values), weights, trim)
        return _slices(mean)

    return trimmed


def _rows(terms: Sequence[Term], block: slice) -> Float32:
    """Some rows of a sum of terms."""
    stack = LowRank.stack([term.load().scaled(term.weight) for term in terms])
    return stack.left[block] @ stack.right


def _slices(matrix: Float32) -> list[Term]:
    """A dense matrix as terms of a sum: columns times the rows of the identity that put them in their place."""
    columns = matrix.shape[1]
    bounds: list[tuple[int, int]] = [(low, min(columns, low + _SLICE_RANK)) for low in range(0, columns, _SLICE_RANK)]
    return [Term(1.0, matrix.shape, high - low, partial(_slice, matrix, low, high)) for low, high in bounds]


def _slice(matrix: NDArray[Any], low: int, high: int) -> LowRank:
    place = np.zeros((high - low, matrix.shape[1]), np.float32)
    place[np.arange(high - low), np.arange(low, high)] = 1.0
    return LowRank(np.ascontiguousarray(matrix[:, low:high]), place)
