"""A merge that hides each device: changes clipped to a norm, all of one weight, and noise on the whole matrices.

McMahan et al., "Learning Differentially Private Recurrent Language Models" (arXiv 1710.06963), in the space of
products: with m devices, G += η·(1/m·Σ clip(Δᵢ, C) + N(0, (zC/m)²)), Δᵢ being what device i by itself would change.
A device whose change were none at all instead would move the mean by at most C/m over all matrices together, so z is
the noise in units of that. The noise is added to the whole m×n matrix. Cutting the result to the server's rank, an
optimizer's memory, and the precision of the broadcast only see what is noisy already.

Noise on the factors would be smaller, but a change of B and A together is no sum over devices whose size a norm bounds
where ranks and bases differ. It comes from the operating system, so the same merge never gives the same bytes twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgefed.aggregation.method import Contribution, GlobalState, PrivateApplyFunction, normalized
from edgefed.aggregation.options import ClientPrivacy
from edgefed.aggregation.product_space import Weighted, step_modules
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.merge import Term
from edgefed.lora.secret_noise import secret_normal

__all__ = ["clipped", "stepping_privately"]

Change = Callable[[Contribution, str, tuple[int, int]], LowRank]


def stepping_privately(
    gradient: Callable[[str, Weighted, tuple[int, int]], Sequence[Term]], change: Change, *, completed: bool = True
) -> PrivateApplyFunction:
    """Returns the private merge of a method that moves the global matrix by a weighted sum of changes.

    Args:
        gradient: as of `stepping`; linear in the weights.
        change: (contribution, module, shape) -> what the gradient has of that contribution, per unit of weight.
        completed: as of `stepping`.
    """

    def apply(
        state: GlobalState,
        contributions: Sequence[Contribution],
        *,
        rank: int,
        optimizer: ServerOptimizer,
        seed: int,
        privacy: ClientPrivacy,
    ) -> GlobalState:
        shapes = {module: matrix.shape for module, matrix in state.adapter.items()}
        weighted = clipped(contributions, change, shapes, privacy.clip_norm)
        deviation = privacy.noise_multiplier * privacy.clip_norm / len(weighted)
        return step_modules(
            state,
            lambda module, shape: [*gradient(module, weighted, shape), _noise(shape, deviation)],
            rank=rank,
            optimizer=optimizer,
            seed=seed if completed else None,
        )

    return apply


def clipped(
    contributions: Sequence[Contribution], change: Change, shapes: dict[str, tuple[int, int]], clip_norm: float
) -> list[tuple[float, Contribution]]:
    """Returns the contributions with weights of 1/m, less where a change is larger than the norm allowed.

    Raises:
        AdapterError: see `normalized`; or a device contributes twice, for whatever rounds: it would count double.
    """
    ordered = [one for _, one in normalized(contributions)]
    devices = [one.device for one in ordered]
    twice = next((device for device in devices if devices.count(device) > 1), None)
    if twice is not None:
        raise AdapterError(f"device {twice!r} contributes twice to one private sum")
    weighted = []
    for one in ordered:
        norm = math.sqrt(sum(change(one, module, shape).norm() ** 2 for module, shape in sorted(shapes.items())))
        weighted.append((min(1.0, clip_norm / norm if norm else 1.0) / len(ordered), one))
    return weighted


def _noise(shape: tuple[int, int], deviation: float) -> Term:
    """Returns a dense matrix of noise as a term of full rank, which is added to the sum before anything is cut."""
    m, n = shape
    drawn = (deviation * secret_normal(shape)).astype(np.float32)
    if n <= m:
        return Term.of(LowRank(drawn, np.eye(n, dtype=np.float32)))
    return Term.of(LowRank(np.eye(m, dtype=np.float32), drawn))
