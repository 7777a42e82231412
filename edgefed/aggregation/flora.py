"""FLoRA: the updates are stacked, nothing is averaged away, and the global adapter grows every round.

Wang, Shen, He, Sun, Wang, Lyu, Li: "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations", NeurIPS 2024, arXiv 2409.05976. The server concatenates pᵢ·sᵢBᵢAᵢ, every device merges the whole
stack into its base weights and starts from fresh factors.

Different from the paper: devices hold the stack as a frozen branch beside the base, which computes the same and
leaves quantized weights untouched. What was stacked before stays as it is, bit for bit, so that a device only
downloads the new components; once a module's stack passes min(m, n) it is decomposed anew, which loses nothing.
The server's rank bounds nothing here: the download grows by the sum of the ranks each round. A stack is a plain
sum, so the only server optimizer is averaging (with any η); another would have to change what was stacked before.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgefed.aggregation.method import Aggregation, Contribution, GlobalState, normalized
from edgefed.aggregation.product_space import empty_state, loaded_update
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.errors import ConfigError
from edgefed.lora.low_rank import LowRank

__all__ = ["FLORA"]

_UNTRIMMED_BECAUSE = "it stacks updates, and a trimmed mean is no stack"


def _apply(
    state: GlobalState,
    contributions: Sequence[Contribution],
    *,
    rank: int,  # noqa: ARG001 - see above: stacking has no bound of its own
    optimizer: ServerOptimizer,
    seed: int,  # noqa: ARG001 - nothing is random here
    memory_limit_bytes: int | None = None,  # noqa: ARG001 - the stack is the result and has to be held
    trim: int = 0,
) -> GlobalState:
    if trim:
        raise ConfigError(f"flora takes no trimmed mean: {_UNTRIMMED_BECAUSE}")
    if optimizer.name != "averaging":
        raise ConfigError(f"flora stacks updates and takes the server optimizer averaging only, not {optimizer.name}")
    weighted = normalized(contributions)
    adapter: dict[str, LowRank] = {}
    for module in sorted(state.adapter):
        value = state.adapter[module]
        updates = [loaded_update(one, module, value.shape).scaled(weight * optimizer.rate) for weight, one in weighted]
        stack = LowRank.stack([value, *updates])
        adapter[module] = stack if stack.rank <= min(stack.shape) else stack.compressed()
    return GlobalState(adapter, {}, state.round + 1)


FLORA = Aggregation("flora", "frozen", False, empty_state, _apply, untrimmed_because=_UNTRIMMED_BECAUSE)
