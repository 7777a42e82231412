"""FlexLoRA: the weighted mean of the devices' products, decomposed anew for every rank.

Bai, Chen, Qian, Yao, Li: "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources", NeurIPS 2024, arXiv 2402.11505. Devices start from the truncation G_r of the global G, and the next
global matrix is G = Σ pᵢ·sᵢBᵢAᵢ.

Different from the paper: the mean is decomposed from its factors and never formed; every device's own scale is
folded in (the released code fixes α = 16); with η ≠ 1 or another server optimizer the step is taken along
Σ pᵢ·sᵢBᵢAᵢ − G, which for plain averaging with η = 1 is the paper's method.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgefed.aggregation.method import Aggregation, Contribution, GlobalState
from edgefed.aggregation.product_space import stepped, trainable_state, update_terms
from edgefed.aggregation.server_optimizers import ServerOptimizer

__all__ = ["FLEXLORA"]


def _apply(
    state: GlobalState,
    contributions: Sequence[Contribution],
    *,
    rank: int,
    optimizer: ServerOptimizer,
    seed: int,
    memory_limit_bytes: int | None = None,
) -> GlobalState:
    return stepped(
        state,
        contributions,
        update_terms,
        optimizer,
        value_weight=-1.0,
        rank=rank,
        seed=seed,
        memory_limit_bytes=memory_limit_bytes,
    )


FLEXLORA = Aggregation("flexlora", "truncated", False, trainable_state, _apply)
