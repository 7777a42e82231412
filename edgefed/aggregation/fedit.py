"""FedIT: one rank for all, B and A averaged separately.

Zhang, Vahidian, Kuo, Li, Zhang, Yu, Wang, Chen: "Towards Building the Federated GPT: Federated Instruction
Tuning", ICASSP 2024, arXiv 2305.05644. FedAvg on LoRA's factors.

Different from the paper: B carries LoRA's scale, which is the same for all where the ranks are; the server may
take another step than averaging.
"""

from __future__ import annotations

from edgefed.aggregation.factor_space import stepping_factors
from edgefed.aggregation.method import Aggregation
from edgefed.aggregation.product_space import trainable_state

__all__ = ["FEDIT"]

FEDIT = Aggregation(
    "fedit",
    "truncated",
    True,
    trainable_state,
    stepping_factors(lambda weight, _: weight, equal_ranks=True),
    space="factors",
)
