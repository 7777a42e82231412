"""What a device changed in a round: its size, its distance from another device's change, and the same made shorter.

A change is what an update adds to what the device started from: the update itself where it trained fresh factors, the
update minus its start where it went on training a truncation of the global adapter. Sizes are measured on what the
method sums. For products everything comes from inner products of factors, ⟨BA, B'A'⟩ = tr((BᵀB')(A'Aᵀ)), in float64:
no product is formed. For methods that average factors the factors count: s·B·A may be small and B huge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgefed.aggregation.method import Aggregation, Contribution
from edgefed.aggregation.product_space import loaded_update
from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.svd import Float32, gram

__all__ = ["check_summable", "inner_products", "shortened"]

Float64 = NDArray[np.float64]
Shapes = Mapping[str, tuple[int, int]]

_BLOCK_RANK = 256  # components whose factors are in memory twice, in float64
_LARGEST = 1e15  # of a component: squares of such still fit float32, in a server optimizer or as a weight by size
_CANCELLATION = 1e-6  # below this share of its components' sizes a product is made of rounding


def inner_products(
    aggregation: Aggregation,
    contributions: Sequence[Contribution],
    shapes: Shapes,
    *,
    memory_limit_bytes: int | None = None,
) -> Float64:
    """Inner products of the changes, summed over all modules.

    Args:
        aggregation: the method, which says what is summed.
        contributions: n of them; each is read some times, a module at a time.
        shapes: module path -> (out_features, in_features).
        memory_limit_bytes: bound on the working memory of products, for one module; None for some tens of megabytes.

    Returns:
        (n, n) float64; a norm is the root of an entry of the diagonal.

    Raises:
        AdapterError: an update's rank or shape is not as announced.
    """
    total = np.zeros((len(contributions), len(contributions)))
    for module in sorted(shapes):
        if aggregation.space == "factors":
            moved = np.stack([_moved_factors(one, module, shapes[module], contributions) for one in contributions])
            total += gram(np.ascontiguousarray(moved.T))
        else:
            total += _product_inner(aggregation, contributions, module, shapes[module], memory_limit_bytes)
    return total


def shortened(aggregation: Aggregation, contribution: Contribution, share: float) -> Contribution:
    """The contribution with its change multiplied by `share`, in (0, 1).

    Where the change is a difference of products the rank becomes that of both together.
    """
    if aggregation.start == "frozen":
        return replace(contribution, update=lambda module: contribution.update(module).scaled(share))

    def between(module: str) -> LowRank:
        sent, start = contribution.update(module), _start(contribution, module)
        if aggregation.space == "products":
            return LowRank.stack([sent.scaled(share), start.scaled(1 - share)])
        start = _cut(start, sent.rank)
        part = np.float32(share)
        return LowRank(start.left + part * (sent.left - start.left), start.right + part * (sent.right - start.right))

    grown = contribution.held_rank if aggregation.space == "products" else 0
    return replace(contribution, update=between, rank=contribution.rank + grown)


def check_summable(matrix: LowRank, where: str) -> None:
    """Refuses values that are finite and would still break or swamp a sum in float32.

    Args:
        matrix: one module of an update.
        where: what it is, for the message.

    Raises:
        AdapterError: a component is too large, or the components nearly cancel, so that what is left of them
            is rounding.
    """
    lefts, rights = (
        np.sqrt(np.einsum("ij,ij->j", side, side, dtype=np.float64)) for side in (matrix.left, matrix.right.T)
    )
    size = float(np.sum(lefts * rights))
    if max(size, lefts.max(initial=0.0), rights.max(initial=0.0)) > _LARGEST:
        raise AdapterError(f"{where}: values of this size ({size:.1g}) cannot be summed; at most {_LARGEST:g} is taken")
    if matrix.norm() < _CANCELLATION * size:
        raise AdapterError(
            f"{where}: its components cancel each other to less than a millionth of their size, {size:.3g}"
        )


def _product_inner(
    aggregation: Aggregation,
    contributions: Sequence[Contribution],
    module: str,
    shape: tuple[int, int],
    memory_limit_bytes: int | None,
) -> Float64:
    """Block by block, so that the factors of a few devices are in memory and not those of all."""
    width = _BLOCK_RANK
    if memory_limit_bytes is not None:
        width = min(width, memory_limit_bytes // (2 * 8 * sum(shape)))
    blocks = list(_blocks(aggregation, contributions, width))
    result = np.zeros((len(contributions), len(contributions)))
    for at, rows in enumerate(blocks):
        one = [_change(aggregation, contributions[index], module, shape) for index in rows]
        for columns in blocks[at:]:
            same = columns is rows
            other = one if same else [_change(aggregation, contributions[index], module, shape) for index in columns]
            found = _block_inner(one, other)
            result[np.ix_(rows, columns)] = found
            result[np.ix_(columns, rows)] = found.T
    return result


def _block_inner(one: Sequence[LowRank], other: Sequence[LowRank]) -> Float64:
    """(len(one), len(other)) inner products by two matrix products and sums over each pair's ranks."""
    ours, theirs = LowRank.stack(one), LowRank.stack(other)
    lefts = ours.left.T.astype(np.float64) @ theirs.left.astype(np.float64)
    rights = ours.right.astype(np.float64) @ theirs.right.T.astype(np.float64)
    rows, columns = (np.cumsum([0, *(matrix.rank for matrix in side[:-1])]) for side in (one, other))
    return np.asarray(np.add.reduceat(np.add.reduceat(lefts * rights, rows, axis=0), columns, axis=1), np.float64)


def _blocks(aggregation: Aggregation, contributions: Sequence[Contribution], width: int) -> Iterator[list[int]]:
    """Indices of the contributions in runs whose ranks add up to about `width`, at least one in each."""
    block: list[int] = []
    filled = 0
    for index, one in enumerate(contributions):
        rank = one.rank + (one.held_rank if aggregation.start == "truncated" else 0)
        if block and filled + rank > width:
            yield block
            block, filled = [], 0
        block.append(index)
        filled += rank
    yield block


def _change(aggregation: Aggregation, one: Contribution, module: str, shape: tuple[int, int]) -> LowRank:
    sent = loaded_update(one, module, shape)
    if aggregation.start == "frozen":
        return sent
    return LowRank.stack([sent, _start(one, module).scaled(-1.0)])


def _moved_factors(
    one: Contribution, module: str, shape: tuple[int, int], contributions: Sequence[Contribution]
) -> Float32:
    """The change of both factors as one vector; components that the device did not have are 0."""
    rank = max(other.rank for other in contributions)
    sent = loaded_update(one, module, shape)
    start = _cut(_start(one, module), sent.rank)
    left, right = np.zeros((shape[0], rank), np.float32), np.zeros((rank, shape[1]), np.float32)
    left[:, : sent.rank] = sent.left - start.left
    right[: sent.rank] = sent.right - start.right
    return np.concatenate([left.ravel(), right.ravel()])


def _start(one: Contribution, module: str) -> LowRank:
    start = one.start(module).truncated(one.held_rank)
    if start.rank != one.held_rank:
        raise AdapterError(
            f"device {one.device!r}, module {module!r}: it says that it held rank {one.held_rank} of a global adapter "
            f"that had rank {start.rank}"
        )
    return start


def _cut(start: LowRank, rank: int) -> LowRank:
    """The start at exactly that rank, with zeros where it has less."""
    missing = rank - start.rank
    if missing <= 0:
        return start.truncated(rank)
    rows, columns = start.shape
    return LowRank.stack(
        [start, LowRank(np.zeros((rows, missing), np.float32), np.zeros((missing, columns), np.float32))]
    )
