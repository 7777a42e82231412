"""A matrix kept as the product of two thin factors, and arithmetic that never forms the product.

LoRA's change of one weight matrix is ΔW = s·B·A. Here it is ``left @ right`` with the scale s folded into left,
so a value means the same whoever holds it. The *canonical form* is the singular value decomposition with all of
the size on the left: left = U·S, right = Vᵀ with orthonormal rows. Its first r columns and rows are the best
rank-r approximation, and a row of right is well scaled even where its singular value is 0, so a device can still
learn in that direction (with both factors zero LoRA has no gradient).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgefed.errors import AdapterError
from edgefed.lora.svd import Float32, complete_rows, dense_svd, factored_svd, gram

__all__ = ["LowRank"]


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The (m, n) matrix ``left @ right``.

    Attributes:
        left: (m, k) float32; k may be 0.
        right: (k, n) float32.

    Raises:
        AdapterError: the factors are not two float32 matrices with the same k.
    """

    left: Float32
    right: Float32

    def __post_init__(self) -> None:
        for side, factor in (("left", self.left), ("right", self.right)):
            if factor.ndim != 2 or factor.dtype != np.float32:
                raise AdapterError(
                    f"the {side} factor is {factor.dtype} of shape {factor.shape}; a float32 matrix is needed"
                )
        if self.left.shape[1] != self.right.shape[0]:
            raise AdapterError(f"factors of shapes {self.left.shape} and {self.right.shape} do not share a rank")

    @classmethod
    def zero(cls, shape: tuple[int, int]) -> LowRank:
        """The zero matrix of that shape (m, n), of rank 0."""
        return cls(np.zeros((shape[0], 0), np.float32), np.zeros((0, shape[1]), np.float32))

    @classmethod
    def stack(cls, terms: Sequence[LowRank]) -> LowRank:
        """The sum of the terms, by putting their factors side by side; the ranks add up.

        Raises:
            AdapterError: there is no term, or their shapes differ.
        """
        shapes = {term.shape for term in terms}
        if len(shapes) != 1:
            raise AdapterError(f"a sum needs terms of one shape, not {sorted(shapes)}")
        return cls(
            np.concatenate([term.left for term in terms], axis=1),
            np.concatenate([term.right for term in terms], axis=0),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): out_features and in_features."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """Number of columns of left; the rank of the product may be less."""
        return int(self.left.shape[1])

    def dense(self) -> Float32:
        """The product as an (m, n) float32 array."""
        return self.left @ self.right

    def scaled(self, factor: float) -> LowRank:
        """The matrix times a number."""
        return LowRank(self.left * np.float32(factor), self.right)

    def sliced(self, low: int, high: int) -> LowRank:
        """Components low to high - 1, as far as they exist; a view of the same memory."""
        return LowRank(self.left[:, low:high], self.right[low:high])

    def truncated(self, rank: int) -> LowRank:
        """The first ``rank`` components: the best approximation of that rank if this is in canonical form."""
        return self.sliced(0, rank)

    def compressed(self, rank: int | None = None, tolerance: float | None = None) -> LowRank:
        """The canonical form, with directions of no size dropped.

        Args:
            rank: keep at most this many directions.
            tolerance: keep the fewest directions whose Frobenius error is at most this share of the norm.

        Returns:
            A value of rank at most min(m, n, rank), 0 for a zero matrix.

        Raises:
            AdapterError: an entry is not finite, or the product does not fit float32.
        """
        if self.rank < min(self.shape):
            return LowRank(*factored_svd(self.left, self.right, rank=rank, tolerance=tolerance))
        self.check("the matrix to compress")
        return LowRank(*dense_svd(self.dense(), rank=rank, tolerance=tolerance))

    def completed(self, rank: int, seed: int) -> LowRank:
        """The same matrix with ``rank`` components: zero columns on the left, fresh orthonormal rows on the right.

        Of use on a canonical form only: the new rows are orthonormal to those that are there. Rows beyond n
        cannot be and are random unit rows. Nothing changes where the rank is reached already.
        """
        if rank <= self.rank:
            return self
        left = np.zeros((self.shape[0], rank), np.float32)
        left[:, : self.rank] = self.left
        return LowRank(left, complete_rows(self.right, rank, seed))

    def norm(self) -> float:
        """The Frobenius norm, from ‖BA‖² = tr(BᵀB·AAᵀ)."""
        return float(np.sqrt(max(0.0, float(np.sum(gram(self.left) * gram(self.right.T))))))

    def inner(self, other: LowRank) -> float:
        """The Frobenius inner product with another matrix of the same shape.

        Raises:
            AdapterError: the shapes differ.
        """
        if self.shape != other.shape:
            raise AdapterError(f"matrices of shapes {self.shape} and {other.shape} have no inner product")
        lefts = self.left.T.astype(np.float64) @ other.left.astype(np.float64)
        rights = self.right.astype(np.float64) @ other.right.T.astype(np.float64)
        return float(np.sum(lefts * rights))

    def check(self, where: str) -> None:
        """Refuses NaN and infinity.

        Args:
            where: what this matrix is, for the message (a module's name).

        Raises:
            AdapterError: an entry of a factor is not finite.
        """
        for side, factor in (("left (B)", self.left), ("right (A)", self.right)):
            bad = factor.size - int(np.count_nonzero(np.isfinite(factor)))
            if bad:
                raise AdapterError(f"{where}: {bad} of {factor.size} entries of {side} are NaN or infinite")
