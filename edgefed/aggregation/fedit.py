"""FedIT: one rank for all, B and A averaged separately.

Zhang, Vahidian, Kuo, Li, Zhang, Yu, Wang, Chen: "Towards Building the Federated GPT: Federated Instruction
Tuning", ICASSP 2024, arXiv 2305.05644. FedAvg on LoRA's factors.

Different from the paper: B carries LoRA's scale, which is the same for all where the ranks are; the server may
take another step than averaging.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgefed.aggregation.factor_space import stepped_factors
from edgefed.aggregation.method import Aggregation, Contribution, GlobalState
from edgefed.aggregation.product_space import trainable_state
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.errors import AdapterError

__all__ = ["FEDIT"]


def _apply(
    state: GlobalState,
    contributions: Sequence[Contribution],
    *,
    rank: int,
    optimizer: ServerOptimizer,
    seed: int,  # noqa: ARG001 - nothing is random here
    memory_limit_bytes: int | None = None,  # noqa: ARG001 - one module's factors are all it ever holds
) -> GlobalState:
    for one in contributions:
        if one.rank != rank:
            raise AdapterError(
                f"fedit needs every device at the server's rank {rank}; {one.device!r} trained {one.rank}"
            )
    return stepped_factors(state, contributions, lambda weight, _: weight, optimizer, rank=rank)


FEDIT = Aggregation("fedit", "truncated", True, trainable_state, _apply)
