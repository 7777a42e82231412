"""What the methods share that average the factors themselves, component by component.

The mean of products is not the product of means: Σ pᵢBᵢAᵢ and (Σ pᵢBᵢ)(Σ pᵢAᵢ) differ by cross terms. These
methods accept that and are cheap: no decomposition, (m + n)·rank work per device. They need every device to start
from the same factors, so the basis is the server's and stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgefed.aggregation.method import ApplyFunction, Contribution, GlobalState, normalized
from edgefed.aggregation.product_space import Weighted, loaded_update
from edgefed.aggregation.server_optimizers import ServerOptimizer, step_elementwise
from edgefed.aggregation.trimmed_mean import trimmed_mean
from edgefed.errors import AdapterError, ConfigError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.svd import Float32

__all__ = ["stepping_factors"]


def stepping_factors(reweighted: Callable[[float, LowRank], float], *, equal_ranks: bool = False) -> ApplyFunction:
    """Returns the merge in which each factor of each module steps along (zero-padded weighted mean − factor).

    It raises AdapterError also for a rank over the server's, or not the server's where all must have it, and for a
    server whose rank has changed.

    Args:
        reweighted: (normalized weight, update) -> weight before normalization, per module.
        equal_ranks: whether all devices must train the server's rank.
    """

    def apply(
        state: GlobalState,
        contributions: Sequence[Contribution],
        *,
        rank: int,
        optimizer: ServerOptimizer,
        seed: int,  # noqa: ARG001 - nothing is random here
        memory_limit_bytes: int | None = None,  # noqa: ARG001 - one module's factors are all it ever holds
        trim: int = 0,
    ) -> GlobalState:
        if trim and not equal_ranks:
            raise ConfigError("a trimmed mean of factors needs one rank for all: padding would be trimmed as if sent")
        weighted = normalized(contributions)
        for _, one in weighted:
            if one.rank > rank or (equal_ranks and one.rank < rank):
                needed = "and all must train" if equal_ranks else "over"
                raise AdapterError(f"device {one.device!r} trained rank {one.rank}, {needed} the server's {rank}")
        adapter: dict[str, LowRank] = {}
        memory: dict[str, Float32] = {}
        for module in sorted(state.adapter):
            value = state.adapter[module]
            if value.rank != rank:
                raise AdapterError(
                    f"module {module!r}: the factors have rank {value.rank} and cannot be averaged at rank {rank}"
                )
            slots = state.slots(module)
            factors = []
            if trim:
                gradients = _trimmed_gradients(module, value, weighted, trim)
            else:
                gradients = _gradients(module, value, weighted, reweighted)
            for side, gradient in zip(("left", "right"), gradients, strict=True):
                own = {slot.removeprefix(f"{side}."): array for slot, array in slots.items() if slot.startswith(side)}
                factor, kept = step_elementwise(optimizer, getattr(value, side), gradient, own)
                factors.append(factor)
                memory.update({f"{module}:{side}.{slot}": array for slot, array in kept.items()})
            adapter[module] = LowRank(*factors)
        return GlobalState(adapter, memory, state.round + 1)

    return apply


def _gradients(
    module: str, value: LowRank, weighted: Weighted, reweighted: Callable[[float, LowRank], float]
) -> tuple[Float32, Float32]:
    """Weighted mean − value of both factors.

    A component that no weight reached keeps its value: a mean of nothing but padding would set both its factors
    to zero, and no device could ever train it again.
    """
    left, right = np.zeros(value.left.shape), np.zeros(value.right.shape)
    reached = np.zeros(value.rank)
    total = 0.0
    for weight, one in weighted:
        matrix = loaded_update(one, module, value.shape)
        own = reweighted(weight, matrix)
        left[:, : one.rank] += own * matrix.left
        right[: one.rank] += own * matrix.right
        reached[: one.rank] += own
        total += own
    if total == 0.0:  # nobody's update has any size: all weigh as they came
        return _gradients(module, value, weighted, lambda weight, _: weight)
    kept = reached > 0
    left_step = np.where(kept, left / total - value.left, 0.0)
    right_step = np.where(kept[:, None], right / total - value.right, 0.0)
    return left_step.astype(np.float32), right_step.astype(np.float32)


def _trimmed_gradients(module: str, value: LowRank, weighted: Weighted, trim: int) -> tuple[Float32, Float32]:
    """Trimmed mean − value of both factors."""
    matrices = [loaded_update(one, module, value.shape) for _, one in weighted]
    weights = np.array([weight for weight, _ in weighted])
    left = trimmed_mean(np.stack([matrix.left for matrix in matrices]), weights, trim)
    right = trimmed_mean(np.stack([matrix.right for matrix in matrices]), weights, trim)
    return left - value.left, right - value.right
