"""Frozen global: devices hold the global adapter fixed and train fresh factors of their own rank beside it.

edgefed's own method. G += η·Σ pᵢ·sᵢBᵢAᵢ, recompressed to the server's rank; a device may hold only a prefix of G.
Nearest prior art is FLoRA (arXiv 2409.05976), which stacks the updates, merges the stack into the base weights
and restarts. Here the base stays untouched, so it may be quantized, and the download stays bounded; the price is
that whatever the server's rank cannot hold is dropped at each merge.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgefed.aggregation.method import Aggregation, Contribution, GlobalState
from edgefed.aggregation.product_space import empty_state, stepped, update_terms
from edgefed.aggregation.server_optimizers import ServerOptimizer

__all__ = ["FROZEN_GLOBAL"]


def _apply(
    state: GlobalState,
    contributions: Sequence[Contribution],
    *,
    rank: int,
    optimizer: ServerOptimizer,
    seed: int,  # noqa: ARG001 - nothing is trained inside the global adapter, so nothing needs completing
    memory_limit_bytes: int | None = None,
) -> GlobalState:
    return stepped(
        state,
        contributions,
        update_terms,
        optimizer,
        rank=rank,
        seed=None,
        memory_limit_bytes=memory_limit_bytes,
    )


FROZEN_GLOBAL = Aggregation("frozen_global", "frozen", False, empty_state, _apply)
