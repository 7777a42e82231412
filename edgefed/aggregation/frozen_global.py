"""Frozen global: devices hold the global adapter fixed and train fresh factors of their own rank beside it.

edgefed's own method. G += η·Σ pᵢ·sᵢBᵢAᵢ, recompressed to the server's rank; a device may hold only a prefix of G.
Nearest prior art is FLoRA (arXiv 2409.05976), which stacks the updates, merges the stack into the base weights
and restarts. Here the base stays untouched, so it may be quantized, and the download stays bounded; the price is
that whatever the server's rank cannot hold is dropped at each merge.
"""

from __future__ import annotations

from edgefed.aggregation.client_privacy import stepping_privately
from edgefed.aggregation.method import Aggregation
from edgefed.aggregation.product_space import empty_state, loaded_update, stepping, update_terms

__all__ = ["FROZEN_GLOBAL"]

FROZEN_GLOBAL = Aggregation(
    "frozen_global",
    "frozen",
    False,
    empty_state,
    stepping(update_terms, completed=False),
    decomposes=True,
    apply_private=stepping_privately(update_terms, loaded_update, completed=False),
)
