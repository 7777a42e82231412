"""What the methods share that average the products s·B·A and not their factors: a step for every module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from edgefed.aggregation.method import ApplyFunction, Contribution, GlobalState, normalized
from edgefed.aggregation.server_optimizers import ServerOptimizer, step_matrix
from edgefed.aggregation.trimmed_mean import trimmed_gradient
from edgefed.errors import AdapterError
from edgefed.lora.adapters import initial_adapter, module_seed
from edgefed.lora.low_rank import LowRank
from edgefed.lora.merge import Term
from edgefed.lora.svd import Float32

__all__ = ["Weighted", "empty_state", "loaded_update", "step_modules", "stepping", "trainable_state", "update_terms"]

Weighted = Sequence[tuple[float, Contribution]]


def trainable_state(shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> GlobalState:
    """Zero matrices of full rank in form: where devices start from the global adapter's truncation."""
    return GlobalState(initial_adapter(shapes, rank, seed), {}, 0)


def empty_state(shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> GlobalState:  # noqa: ARG001
    """Zero matrices of rank 0: where devices hold the global adapter frozen, and at first there is nothing to hold."""
    return GlobalState({module: LowRank.zero(shapes[module]) for module in sorted(shapes)}, {}, 0)


def update_terms(module: str, weighted: Weighted, shape: tuple[int, int]) -> list[Term]:
    """pᵢ·sᵢBᵢAᵢ of one module, each to be loaded when its turn comes."""
    return [Term(weight, shape, one.rank, partial(loaded_update, one, module, shape)) for weight, one in weighted]


def loaded_update(contribution: Contribution, module: str, shape: tuple[int, int]) -> LowRank:
    """One module of an update.

    Raises:
        AdapterError: its rank or shape is not what was announced.
    """
    matrix = contribution.update(module)
    if matrix.shape != shape or matrix.rank != contribution.rank:
        raise AdapterError(
            f"device {contribution.device!r}, module {module!r}: rank {matrix.rank} of shape {matrix.shape} "
            f"where rank {contribution.rank} of shape {shape} was announced"
        )
    return matrix


def stepping(
    gradient: Callable[[str, Weighted, tuple[int, int]], Sequence[Term]],
    *,
    value_weight: float = 0.0,
    completed: bool = True,
) -> ApplyFunction:
    """Returns the merge in which every module takes an optimizer step along its own pseudo-gradient.

    Args:
        gradient: (module, weighted contributions, shape) -> terms of the pseudo-gradient.
        value_weight: how much of the global matrix itself is in the pseudo-gradient.
        completed: whether the result is filled up to the server's rank, because devices go on training it.
    """

    def apply(
        state: GlobalState,
        contributions: Sequence[Contribution],
        *,
        rank: int,
        optimizer: ServerOptimizer,
        seed: int,
        memory_limit_bytes: int | None = None,
        trim: int = 0,
    ) -> GlobalState:
        weighted = normalized(contributions)
        along = trimmed_gradient(gradient, trim) if trim else gradient
        return step_modules(
            state,
            lambda module, shape: along(module, weighted, shape),
            value_weight=value_weight,
            rank=rank,
            optimizer=optimizer,
            seed=seed if completed else None,
            memory_limit_bytes=memory_limit_bytes,
        )

    return apply


def step_modules(
    state: GlobalState,
    gradient: Callable[[str, tuple[int, int]], Sequence[Term]],
    *,
    value_weight: float = 0.0,
    rank: int,
    optimizer: ServerOptimizer,
    seed: int | None,
    memory_limit_bytes: int | None = None,
) -> GlobalState:
    """Returns the state after every module took an optimizer step along its own pseudo-gradient.

    Args:
        state: before.
        gradient: (module, shape) -> terms of the pseudo-gradient.
        value_weight: how much of the global matrix itself is in it.
        rank: of the server.
        optimizer: which step.
        seed: of the rows that fill the result up to `rank`; None leaves a result of lower rank as it is.
        memory_limit_bytes: see `ApplyFunction`.
    """
    adapter: dict[str, LowRank] = {}
    memory: dict[str, Float32] = {}
    for module in sorted(state.adapter):
        value = state.adapter[module]
        adapter[module], slots = step_matrix(
            optimizer,
            value,
            gradient(module, value.shape),
            state.slots(module),
            value_weight=value_weight,
            rank=rank,
            seed=None if seed is None else module_seed(module, seed),
            memory_limit_bytes=memory_limit_bytes,
        )
        memory.update({f"{module}:{slot}": array for slot, array in slots.items()})
    return GlobalState(adapter, memory, state.round + 1)
