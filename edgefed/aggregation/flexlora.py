"""FlexLoRA: the weighted mean of the devices' products, decomposed anew for every rank.

Bai, Chen, Qian, Yao, Li: "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources", NeurIPS 2024, arXiv 2402.11505. Devices start from the truncation G_r of the global G, and the next
global matrix is G = Σ pᵢ·sᵢBᵢAᵢ.

Different from the paper: the mean is decomposed from its factors and never formed; every device's own scale is
folded in (the released code fixes α = 16); with η ≠ 1 or another server optimizer the step is taken along
Σ pᵢ·sᵢBᵢAᵢ − G, which for plain averaging with η = 1 is the paper's method.
"""

from __future__ import annotations

from edgefed.aggregation.method import Aggregation
from edgefed.aggregation.product_space import stepping, trainable_state, update_terms

__all__ = ["FLEXLORA"]

FLEXLORA = Aggregation(
    "flexlora", "truncated", False, trainable_state, stepping(update_terms, value_weight=-1.0), decomposes=True
)
