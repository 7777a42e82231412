"""Delta: the global matrix moves by what each device changed of the part that it held.

edgefed's own variant of FlexLoRA (arXiv 2402.11505). Devices start from the truncation G_r of the global G, and
G += η·Σ pᵢ·(sᵢBᵢAᵢ − G_rᵢ), each against the truncation of the global matrix that its own round published. Under
FlexLoRA a device of low rank pulls every component it cannot hold towards zero; here it leaves them alone. With
equal ranks, no late updates, η = 1 and G_r = G the two are the same.
"""

from __future__ import annotations

import numpy as np

from edgefed.aggregation.client_privacy import stepping_privately
from edgefed.aggregation.method import Aggregation, Contribution
from edgefed.aggregation.product_space import Weighted, loaded_update, stepping, trainable_state, update_terms
from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.merge import Term

__all__ = ["DELTA"]


def _change_terms(module: str, weighted: Weighted, shape: tuple[int, int]) -> list[Term]:
    """Terms of Σ pᵢ·(sᵢBᵢAᵢ − G_rᵢ).

    The truncations of one G add up to G with a weight per component, so they cost its rank once and not once per
    device. Starts are told apart by their content: late updates come with another G.
    """
    starts: list[tuple[LowRank, np.ndarray]] = []
    for weight, one in weighted:
        start = one.start(module)
        if start.shape != shape:
            raise AdapterError(
                f"device {one.device!r}, module {module!r}: its start has shape {start.shape}, not {shape}"
            )
        known = next((weights for other, weights in starts if _same(start, other)), None)
        if known is None:
            known = np.zeros(start.rank)
            starts.append((start, known))
        known[: one.held_rank] += weight
    held = [LowRank(start.left * weights.astype(np.float32), start.right) for start, weights in starts]
    return [*update_terms(module, weighted, shape), *(Term.of(matrix, -1.0) for matrix in held)]


def _same(one: LowRank, other: LowRank) -> bool:
    return one is other or (np.array_equal(one.left, other.left) and np.array_equal(one.right, other.right))


def _change(one: Contribution, module: str, shape: tuple[int, int]) -> LowRank:
    held = one.start(module).truncated(one.held_rank)
    return LowRank.stack([loaded_update(one, module, shape), held.scaled(-1.0)])


DELTA = Aggregation(
    "delta",
    "truncated",
    False,
    trainable_state,
    stepping(_change_terms),
    decomposes=True,
    apply_private=stepping_privately(_change_terms, _change),
)
