"""An adapter: one low-rank matrix per adapted module, keyed by the base model's own module path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias
from zlib import crc32

import numpy as np

from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank

__all__ = ["Adapter", "adapter_rank", "check_adapter", "initial_adapter", "levelled", "module_seed", "truncated"]

Adapter: TypeAlias = Mapping[str, LowRank]


def initial_adapter(shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> dict[str, LowRank]:
    """The adapter that changes nothing and can be trained in every direction.

    left is 0 and right holds random orthonormal rows: the canonical form of a zero matrix, so that round 1 starts
    from the same kind of value as every later round. Each device's prefix is an isotropic draw. peft's own start
    (Kaiming-uniform, bound 1/√n) gives rows of norm 0.58 and nearly orthogonal; these have norm 1.

    Args:
        shapes: module path -> (out_features, in_features).
        rank: number of components, the same in every module.
        seed: together with the module's name it decides the rows.

    Returns:
        module path -> left (out_features, rank) zeros, right (rank, in_features), in sorted order.
    """
    return {
        module: LowRank.zero(shapes[module]).completed(rank, module_seed(module, seed)) for module in sorted(shapes)
    }


def module_seed(module: str, seed: int) -> int:
    """A seed for one module: two modules of one shape must not get the same rows."""
    return crc32(f"{seed}/{module}".encode())


def truncated(adapter: Adapter, rank: int) -> dict[str, LowRank]:
    """Every module cut to its first ``rank`` components."""
    return {module: matrix.truncated(rank) for module, matrix in adapter.items()}


def adapter_rank(adapter: Adapter) -> int:
    """The largest rank among the modules; 0 for an adapter without modules."""
    return max((matrix.rank for matrix in adapter.values()), default=0)


def levelled(adapter: Adapter) -> dict[str, LowRank]:
    """Every module at the largest rank among them, filled up with zeros: for code that knows one rank only.

    A stack that grows every round is decomposed anew in the modules whose smaller side it passes, and not in others.
    """
    rank = adapter_rank(adapter)
    return {module: _filled_up(matrix, rank) for module, matrix in adapter.items()}


def _filled_up(matrix: LowRank, rank: int) -> LowRank:
    missing = rank - matrix.rank
    if not missing:
        return matrix
    rows, columns = matrix.shape
    zeros = LowRank(np.zeros((rows, missing), np.float32), np.zeros((missing, columns), np.float32))
    return LowRank.stack([matrix, zeros])


def check_adapter(adapter: Adapter, shapes: Mapping[str, tuple[int, int]], max_rank: int) -> None:
    """Refuses an adapter that may not enter a sum.

    Args:
        adapter: what a device sent.
        shapes: module path -> (out_features, in_features) of the federation's modules.
        max_rank: the largest rank allowed.

    Raises:
        AdapterError: unknown or missing module, wrong shape, rank over the limit, ranks that differ between
            modules, NaN or infinity. The message names module, found and allowed.
    """
    unknown, missing = sorted(set(adapter) - set(shapes)), sorted(set(shapes) - set(adapter))
    if unknown:
        raise AdapterError(f"module {unknown[0]!r} is not one of the federation's {len(shapes)} modules")
    if missing:
        raise AdapterError(f"module {missing[0]!r} is missing ({len(missing)} of {len(shapes)} are)")
    rank = adapter_rank(adapter)
    if rank > max_rank:
        raise AdapterError(f"the adapter has rank {rank}; at most {max_rank} is allowed")
    for module in sorted(adapter):
        matrix = adapter[module]
        if matrix.shape != tuple(shapes[module]):
            raise AdapterError(f"module {module!r} has shape {matrix.shape}; {tuple(shapes[module])} is needed")
        if matrix.rank != rank:
            raise AdapterError(f"module {module!r} has rank {matrix.rank} where another has {rank}")
        matrix.check(f"module {module!r}")
