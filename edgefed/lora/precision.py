"""Factors as fewer bits, and what to do with what the rounding lost.

**Encoding.** Both reduced precisions carry one float32 scale per component: per row of A and per column of B.
int8 divides by max|x|/127. fp16 divides by a power of two that brings the largest entry into [0.5, 1): B's entries
are often below 6e-5, where float16 has only a few bits left, and large ones would overflow; the division is
exact. Scales belong to components, so cutting an adapter along its rank commutes with encoding it.

**Error feedback.** What rounding lost is kept by the sender as a matrix, E = ΔW − decoded(ΔW), and never as an
error of the factors: the basis of the factors changes every round (the server decomposes anew, B·A = (BM)(M⁻¹A)
for every invertible M), so yesterday's error of A means nothing beside today's A. As a matrix it means the same
every round, and it is low-rank exactly: E = (B − B')·A + B'·(A − A').

A message of rank r cannot carry ΔW + E, which has a higher rank. To first order it carries the part of E in the
tangent space of the rank-r matrices at ΔW: changes of B with A held, plus changes of A with B held. Both pieces
of E above were of that kind when they arose, so nearly all of E goes out one round later, in the sender's own
basis (which factor-averaging methods need), and at no cost in bytes. The rest waits in the new residual, which
keeps its 2r largest directions.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.svd import Float32

__all__ = ["Precision", "decode", "encode", "with_residual"]

Precision = Literal["fp32", "fp16", "int8"]


def encode(components: Float32, precision: Precision) -> tuple[NDArray[Any], Float32 | None]:
    """Rounds a factor.

    Args:
        components: (rank, size) float32, one component per row (A itself, or the transpose of B).
        precision: what to round to.

    Returns:
        The (rank, size) array in float32, float16 or int8, and its scales (rank,) float32; None for fp32.
    """
    if precision == "fp32":
        return components, None
    largest = np.abs(components).max(axis=1, initial=0.0)
    if precision == "fp16":
        scales = np.ldexp(np.float32(1), np.minimum(np.frexp(largest)[1], 127)).astype(np.float32)
        return (components / scales[:, None]).astype(np.float16), scales
    # a subnormal scale would lose digits itself
    scales = np.maximum(largest / np.float32(127), np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(components / scales[:, None]).astype(np.int8), scales


def decode(stored: NDArray[Any], scales: Float32 | None) -> Float32:
    """The (rank, size) float32 factor that `encode` rounded."""
    if scales is None:
        return stored.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # the reader checks the result, whoever wrote the scales
        return stored.astype(np.float32) * scales[:, None]


def with_residual(matrix: LowRank, residual: LowRank) -> LowRank:
    """The matrix moved by the part of the residual that its own rank can carry.

    One alternating least-squares sweep: left takes what lies in the row space of right, then right takes what
    lies in the column space of left.

    Args:
        matrix: (m, n) of rank r.
        residual: (m, n) of any rank.

    Returns:
        A matrix of rank r, in nearly the same basis, closer to matrix + residual than matrix is.

    Raises:
        AdapterError: the shapes differ.
    """
    if matrix.shape != residual.shape:
        raise AdapterError(f"a residual of shape {residual.shape} does not belong to a matrix of {matrix.shape}")
    left = matrix.left + residual.left @ (residual.right @ _pseudo_inverse(matrix.right))
    # what is still missing: matrix.left @ right + residual - left @ right
    missing = LowRank.stack([LowRank(matrix.left - left, matrix.right), residual])
    right = matrix.right + (_pseudo_inverse(left) @ missing.left) @ missing.right
    return LowRank(np.asarray(left, np.float32), np.asarray(right, np.float32))


def _pseudo_inverse(factor: Float32) -> Float32:
    # Directions under a thousandth of the largest would take steps a thousand times larger: they may wait.
    return np.asarray(np.linalg.pinv(factor, rcond=1e-3), np.float32)
