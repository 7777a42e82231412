"""The weighted sum of many low-rank matrices, back in canonical form, by the path that suits their sizes.

======== ================================================ =========================== =======================
path     what happens                                     work                        memory
======== ================================================ =========================== =======================
stacked  factors side by side, one decomposition of them  (m + n)·R² + R³             (m + n)·R
dense    products summed into m×n, one decomposition      m·n·R + m·n·min + min³      m·n + min²
streamed factors side by side up to a width W, compressed (m + n)·R·W + R·W²          (m + n)·W
         to half of it whenever they would not fit
======== ================================================ =========================== =======================

R is the sum of the terms' ranks and min is min(m, n). Stacked and dense are exact to float32 rounding, and the
memory of both is bounded whatever the number of terms, since stacked is only chosen while R is below min(m, n).
Streamed is for a memory limit that neither fits; each compression discards what lies beyond W/2 directions, so
its error is at most the sum of those tails, and it is exact as well while R is at most W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgefed.errors import AdapterError, ConfigError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.svd import Float32, dense_svd

__all__ = ["MergePath", "Term", "choose_path", "dense_sum", "memory_bytes", "sufficient_bytes", "weighted_sum"]

MergePath = Literal["stacked", "dense", "streamed"]

# Relative prices, fitted to benchmarks/merge_speed (OpenBLAS on a Xeon): one multiply-add of a float32 product, one
# of a float64 product, and the symmetric eigenproblem per element of the matrix times its size.
_FLOAT32_PRICE, _FLOAT64_PRICE, _EIGEN_PRICE = 1.0, 2.0, 10.0
_BLOCK_RANK = 128  # terms are multiplied out this many columns at a time: rank-8 products alone waste the BLAS


@dataclass(frozen=True, slots=True)
class Term:
    """One weighted matrix of a sum, loaded when its turn comes.

    Attributes:
        weight: what the matrix is multiplied by.
        shape: (m, n) of the matrix.
        rank: of the matrix, so that the path can be chosen before anything is loaded.
        load: returns the matrix; called once per merge, and not kept.
    """

    weight: float
    shape: tuple[int, int]
    rank: int
    load: Callable[[], LowRank]

    @classmethod
    def of(cls, matrix: LowRank, weight: float = 1.0) -> Term:
        """A term whose matrix is in memory already."""
        return cls(weight, matrix.shape, matrix.rank, lambda: matrix)

    def scaled(self, factor: float) -> Term:
        """The same term with its weight multiplied."""
        return Term(self.weight * factor, self.shape, self.rank, self.load)


def weighted_sum(
    terms: Sequence[Term],
    rank: int | None,
    *,
    path: MergePath | Literal["auto"] = "auto",
    memory_limit_bytes: int | None = None,
    seed: int | None = None,
) -> LowRank:
    """Σ weight · matrix in canonical form (left = U·S, right = Vᵀ).

    The terms are added in the order given: the result is the same to the last bit for the same order, path and
    number of BLAS threads.

    Args:
        terms: at least one, all of one shape (m, n).
        rank: at most this many directions are kept: the best approximation of that rank. None: nothing is lost.
        path: "auto" takes `choose_path`'s.
        memory_limit_bytes: bound on the working memory of "auto" and on the width of "streamed".
        seed: of random orthonormal rows (with zero columns) that fill the result up to exactly ``rank``, so that
            it can be trained in every component; None leaves a result of lower rank as it is.

    Raises:
        AdapterError: no terms, different shapes, a loaded matrix that is not what its term says, values that are
            not finite.
        ConfigError: the memory limit is too small for the rank wanted.
    """
    shape = _common_shape(terms)
    used = [term for term in terms if term.weight != 0.0 and term.rank > 0]
    if path == "auto":
        path = choose_path(shape, [term.rank for term in used], rank, memory_limit_bytes)
    if path == "stacked":
        total = _stacked(used, shape).compressed(rank)
    elif path == "dense":
        total = LowRank(*dense_svd(dense_sum(used, shape), rank=rank))
    else:
        total = _streamed(used, shape, rank, memory_limit_bytes)
    return total if rank is None or seed is None else total.completed(rank, seed)


def choose_path(
    shape: tuple[int, int],
    ranks: Sequence[int],
    rank: int | None = None,
    memory_limit_bytes: int | None = None,
) -> MergePath:
    """The fastest path that fits the memory limit.

    Time is counted in multiply-adds of each kind, at the relative prices that the benchmark measured, with r the
    result's rank: stacked = float64·((m + n)·R·(R + 2r) + 3R³) + eigen·R³, and dense = float32·mnR +
    float64·mn·(min + r) + eigen·min³. So stacked wins until R comes close to min(m, n); beyond that it is never
    taken, because its memory would grow with the number of terms.

    Args:
        shape: (m, n).
        ranks: of the terms.
        rank: of the result; None for all of it.
        memory_limit_bytes: None for no limit.
    """
    rows, columns = shape
    total, least = sum(ranks), min(shape)
    kept = min(total, least) if rank is None else min(rank, total, least)
    price: dict[MergePath, float] = {}
    if total < least:
        products = (rows + columns) * total * (total + 2 * kept) + 3 * total**3
        price["stacked"] = _FLOAT64_PRICE * products + _EIGEN_PRICE * total**3
    price["dense"] = (
        _FLOAT32_PRICE * rows * columns * total
        + _FLOAT64_PRICE * rows * columns * (least + kept)
        + _EIGEN_PRICE * least**3
    )
    for path in sorted(price, key=lambda path: price[path]):
        if memory_limit_bytes is None or memory_bytes(path, shape, total, kept) <= memory_limit_bytes:
            return path
    return "streamed"


def memory_bytes(path: MergePath, shape: tuple[int, int], total_rank: int, kept: int) -> int:
    """Estimate of a path's peak working memory; `total_rank` is the width W for "streamed"."""
    rows, columns = shape
    if path == "dense":
        least = min(shape)
        return 4 * rows * columns + 4 * (rows + columns) * (2 * _BLOCK_RANK + 5 * kept) + 8 * 5 * least**2
    # the stack, its balanced copy, the small square matrices, and the kept rows and columns in float64
    return 4 * (rows + columns) * (3 * total_rank + 5 * kept) + 8 * 6 * total_rank**2


def sufficient_bytes(shape: tuple[int, int], rank: int) -> int:
    """Working memory that is enough for any number of terms and a result that are all of at most this rank."""
    kept = min(rank, *shape)
    return min(memory_bytes("dense", shape, 0, kept), memory_bytes("streamed", shape, 2 * rank, rank))


def dense_sum(terms: Sequence[Term], shape: tuple[int, int]) -> Float32:
    """Σ weight · matrix as an (m, n) float32 array."""
    total = np.zeros(shape, np.float32)
    for block in _blocks(terms, _BLOCK_RANK):
        stacked = _stacked(block, shape)
        total += stacked.left @ stacked.right
    return total


def _blocks(terms: Sequence[Term], width: int) -> Iterator[list[Term]]:
    """The terms in order, in runs whose ranks add up to about ``width``."""
    block: list[Term] = []
    for term in terms:
        if block and sum(other.rank for other in block) + term.rank > width:
            yield block
            block = []
        block.append(term)
    if block:
        yield block


def _stacked(terms: Sequence[Term], shape: tuple[int, int]) -> LowRank:
    """The sum as one pair of factors; each term is loaded into its place and let go."""
    total = sum(term.rank for term in terms)
    left = np.empty((shape[0], total), np.float32)
    right = np.empty((total, shape[1]), np.float32)
    at = 0
    for term in terms:
        matrix = _loaded(term)
        np.multiply(matrix.left, np.float32(term.weight), out=left[:, at : at + term.rank])
        right[at : at + term.rank] = matrix.right
        at += term.rank
    return LowRank(left, right)


def _streamed(
    terms: Sequence[Term], shape: tuple[int, int], rank: int | None, memory_limit_bytes: int | None
) -> LowRank:
    if not terms:
        return LowRank.zero(shape)
    wanted = min(shape) if rank is None else min(rank, min(shape))
    needed = 2 * max(wanted, max(term.rank for term in terms))
    width = needed if memory_limit_bytes is None else _width_within(memory_limit_bytes, shape)
    if width < needed:
        raise ConfigError(
            f"merging to rank {wanted} a matrix of shape {shape} needs "
            f"{memory_bytes('streamed', shape, needed, needed // 2)} bytes of working memory and the limit is "
            f"{memory_limit_bytes}: raise the limit or lower the rank"
        )
    total = LowRank.zero(shape)
    for block in _blocks(terms, width - width // 2):
        total = LowRank.stack([total, _stacked(block, shape)]).compressed(width // 2)
    return total.truncated(wanted)


def _width_within(limit_bytes: int, shape: tuple[int, int]) -> int:
    low, high = 0, 4 * max(shape)
    while low < high:
        middle = (low + high + 1) // 2
        fits = memory_bytes("streamed", shape, middle, middle // 2) <= limit_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _loaded(term: Term) -> LowRank:
    matrix = term.load()
    if (matrix.shape, matrix.rank) != (term.shape, term.rank):
        raise AdapterError(
            f"a term announced as rank {term.rank} of shape {term.shape} was loaded as rank {matrix.rank} "
            f"of shape {matrix.shape}"
        )
    return matrix


def _common_shape(terms: Sequence[Term]) -> tuple[int, int]:
    shapes = {term.shape for term in terms}
    if len(shapes) != 1:
        raise AdapterError(f"a sum needs terms of one shape, not {sorted(shapes)}")
    return shapes.pop()
