"""HetLoRA: zero-padded factors, averaged with weights by the size of each device's update.

Cho, Liu, Xu, Fahrezi, Joshi: "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
EMNLP 2024, arXiv 2401.06432. Devices start from the first r components of the global factors; the server pads the
factors it gets with zeros to its own rank and averages B and A separately, with weights ‖BₖAₖ‖_F per module.

Different from the paper: the size multiplies the contribution's own weight (which carries examples and the
discount of late updates); with equal weights it is the paper's. Devices do not prune their own rank. B carries
LoRA's scale. A component that no device trained in a round keeps its value.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgefed.aggregation.factor_space import stepped_factors
from edgefed.aggregation.method import Aggregation, Contribution, GlobalState
from edgefed.aggregation.product_space import trainable_state
from edgefed.aggregation.server_optimizers import ServerOptimizer

__all__ = ["HETLORA"]


def _apply(
    state: GlobalState,
    contributions: Sequence[Contribution],
    *,
    rank: int,
    optimizer: ServerOptimizer,
    seed: int,  # noqa: ARG001 - nothing is random here
    memory_limit_bytes: int | None = None,  # noqa: ARG001 - one module's factors are all it ever holds
) -> GlobalState:
    return stepped_factors(state, contributions, lambda weight, matrix: weight * matrix.norm(), optimizer, rank=rank)


HETLORA = Aggregation("hetlora", "truncated", False, trainable_state, _apply)
