"""HetLoRA: zero-padded factors, averaged with weights by the size of each device's update.

Cho, Liu, Xu, Fahrezi, Joshi: "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
EMNLP 2024, arXiv 2401.06432. Devices start from the first r components of the global factors; the server pads the
factors it gets with zeros to its own rank and averages B and A separately, with weights ‖BₖAₖ‖_F per module.

Different from the paper: the size multiplies the contribution's own weight (which carries examples and the
discount of late updates); with equal weights it is the paper's. Devices do not prune their own rank. B carries
LoRA's scale. A component that no device trained in a round keeps its value.
"""

from __future__ import annotations

from edgefed.aggregation.factor_space import stepping_factors
from edgefed.aggregation.method import Aggregation
from edgefed.aggregation.product_space import trainable_state
from edgefed.lora.low_rank import LowRank

__all__ = ["HETLORA"]


def _by_size(weight: float, update: LowRank) -> float:
    return weight * update.norm()


HETLORA = Aggregation(
    "hetlora",
    "truncated",
    False,
    trainable_state,
    stepping_factors(_by_size),
    space="factors",
    weighs_by_size=True,
    untrimmed_because="it pads factors of different ranks, and padding would be trimmed as if it had been sent",
)
