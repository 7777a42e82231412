"""Server optimizers: the aggregate of a round as a pseudo-gradient.

Federated optimization (Reddi et al., ICLR 2021, arXiv 2003.00295) lets the server take an optimizer step along
the mean change of the devices instead of adding it; Woisetschläger et al. (arXiv 2310.03150) compare such
optimizers for federated fine-tuning of language models. With g the aggregate, which points *along* the change:

===========  ==========================================================================================
averaging    x += η·g
momentum     v = β₁·v + g;  x += η·v                                     (FedAvgM, arXiv 1909.06335)
adam         m = β₁·m + (1 − β₁)·g;  s = β₂·s + (1 − β₂)·g²;  x += η·m / (√s + ε)        (FedAdam)
adamw        the same after x *= 1 − η·λ                                 (decoupled decay, arXiv 1711.05101)
===========  ==========================================================================================

As in the paper there is no bias correction. It is the paper's ε (there τ) that keeps the first steps small.

What x is decides how a step is taken. Methods that average factors step elementwise on the factors. Methods that
average products step on the matrix: averaging and momentum are linear, so they stay in low-rank form, while
Adam's second moment is elementwise and needs the matrix itself: it is formed for one module at a time, and two
arrays of its size (8·m·n bytes a module) stay in the server's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from edgefed.aggregation.options import OptimizerName, ServerOptimizer
from edgefed.lora.low_rank import LowRank
from edgefed.lora.merge import Term, dense_sum, weighted_sum
from edgefed.lora.svd import Float32, dense_svd

__all__ = ["OptimizerName", "ServerOptimizer", "Slots", "step_elementwise", "step_matrix"]

Slots: TypeAlias = Mapping[str, Float32]


def step_elementwise(
    optimizer: ServerOptimizer, value: Float32, gradient: Float32, slots: Slots
) -> tuple[Float32, dict[str, Float32]]:
    """One step on an array.

    Args:
        optimizer: which step.
        value: x, any shape.
        gradient: g, the same shape, along the change wanted.
        slots: what the last step on this array returned; empty before the first.

    Returns:
        The new x and the new slots ("first", "second": arrays of x's shape).
    """
    rate = np.float32(optimizer.rate)
    if optimizer.name == "averaging":
        return value + rate * gradient, {}
    beta1, beta2 = np.float32(optimizer.beta1), np.float32(optimizer.beta2)
    first = slots.get("first", np.zeros_like(value)) * beta1
    if optimizer.name == "momentum":
        first += gradient
        return value + rate * first, {"first": first}
    first += (1 - beta1) * gradient
    second = slots.get("second", np.zeros_like(value)) * beta2 + (1 - beta2) * np.square(gradient)
    decayed = value * np.float32(1 - optimizer.rate * optimizer.weight_decay)
    step = rate * first / (np.sqrt(second) + np.float32(optimizer.epsilon))
    return decayed + step, {"first": first, "second": second}


def step_matrix(
    optimizer: ServerOptimizer,
    value: LowRank,
    gradient: Sequence[Term],
    slots: Slots,
    *,
    value_weight: float = 0.0,
    rank: int,
    seed: int | None = None,
    memory_limit_bytes: int | None = None,
) -> tuple[LowRank, dict[str, Float32]]:
    """One step on a matrix in low-rank form, along g = Σ gradient + value_weight·x.

    The result is the best approximation of the stepped matrix of that rank. Momentum's buffer keeps its 2·rank
    largest directions: each round discards a tail, and all the tails together move x by at most
    η·max‖tail‖/(1 − β₁), most of it in directions that x's own truncation discards as well.

    Args:
        optimizer: which step.
        value: x, (m, n).
        gradient: terms of g, of x's shape.
        slots: what the last step on this matrix returned; empty before the first.
        value_weight: how much of x itself is in g (−1 where the devices' sum replaces x).
        rank: of the result.
        seed: of the rows that fill the result up to ``rank``; None leaves a result of lower rank as it is.
        memory_limit_bytes: for the merges of averaging and momentum.

    Returns:
        The new x in canonical form and the new slots: "left" and "right" of momentum's buffer, or Adam's "first"
        and "second" moments as (m, n) arrays.
    """
    rate = optimizer.rate
    if optimizer.name in ("adam", "adamw"):
        along = dense_sum([*gradient, Term.of(value, value_weight)], value.shape)
        stepped, dense_slots = step_elementwise(optimizer, value.dense(), along, slots)
        result = LowRank(*dense_svd(stepped, rank=rank))
        return (result if seed is None else result.completed(rank, seed)), dense_slots
    kept: dict[str, Float32] = {}
    terms = [Term.of(value, 1 + rate * value_weight), *(term.scaled(rate) for term in gradient)]
    if optimizer.name == "momentum":
        along_terms = [Term.of(value, value_weight), *gradient]
        if slots:
            along_terms.append(Term.of(LowRank(slots["left"], slots["right"]), optimizer.beta1))
        buffer = weighted_sum(along_terms, 2 * rank, memory_limit_bytes=memory_limit_bytes)
        kept = {"left": buffer.left, "right": buffer.right}
        terms = [Term.of(value), Term.of(buffer, rate)]
    return weighted_sum(terms, rank, seed=seed, memory_limit_bytes=memory_limit_bytes), kept
