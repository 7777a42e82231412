"""What becomes of each update before a round is merged: its weight, how much of its change counts, or why it does not.

Choosing comes before merging and knows nothing of how a method merges: so multi-Krum and both bounds go with every
method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefed.aggregation.changes import inner_products
from edgefed.aggregation.method import Aggregation, Contribution
from edgefed.aggregation.multi_krum import multi_krum_scores
from edgefed.aggregation.robustness import Robustness
from edgefed.aggregation.weight_shares import bounded_shares
from edgefed.errors import AdapterError, ConfigError

__all__ = ["Verdict", "check_defence", "defend"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one update.

    Attributes:
        weight: in the sum, before normalization; 0 for one that is left out.
        share: of its change that counts, in (0, 1].
        reason: why it is left out or made shorter; "" for one that is not.
    """

    weight: float
    share: float = 1.0
    reason: str = ""


def check_defence(aggregation: Aggregation, robustness: Robustness) -> None:
    """Refuses options that the method cannot honour: better now than after a round.

    Raises:
        ConfigError: in words.
    """
    if robustness.rule == "trimmed_mean" and aggregation.untrimmed_because:
        raise ConfigError(
            f"robustness.rule trimmed_mean does not go with aggregation {aggregation.name}: "
            f"{aggregation.untrimmed_because}; take multi_krum, or another aggregation"
        )
    if aggregation.weighs_by_size and robustness.max_weight_share < 1:
        raise ConfigError(
            f"robustness.max_weight_share bounds nothing with aggregation {aggregation.name}, which weighs a device by "
            "the size of its update, whatever it claims: set robustness.max_update_norm instead"
        )


def defend(
    aggregation: Aggregation,
    robustness: Robustness,
    contributions: Sequence[Contribution],
    shapes: Mapping[str, tuple[int, int]],
    *,
    memory_limit_bytes: int | None = None,
) -> list[Verdict]:
    """A verdict for each contribution, in their order; it does not depend on that order.

    Args:
        aggregation: how they will be merged.
        robustness: bounds and rule.
        contributions: at least one.
        shapes: module path -> (out_features, in_features).
        memory_limit_bytes: bound on working memory, for one module; None for some tens of megabytes.

    Raises:
        AdapterError: fewer devices than the rule needs, or an update whose rank or shape is not as announced.
    """
    verdicts = [Verdict(one.weight) for one in contributions]
    if robustness.rule != "none":
        verdicts = _newest_only(contributions)
        _check_number(robustness, sum(verdict.weight > 0 for verdict in verdicts))
    in_order = sorted(range(len(contributions)), key=lambda at: (contributions[at].device, contributions[at].round))
    left = [at for at in in_order if verdicts[at].weight > 0]
    if robustness.rule == "multi_krum" or robustness.max_update_norm is not None:
        inner = inner_products(
            aggregation, [contributions[at] for at in left], shapes, memory_limit_bytes=memory_limit_bytes
        )
        for at, verdict in zip(left, _judged(robustness, inner, [verdicts[at] for at in left]), strict=True):
            verdicts[at] = verdict
    return _bounded(robustness.max_weight_share, contributions, verdicts)


def _newest_only(contributions: Sequence[Contribution]) -> list[Verdict]:
    """One voice for each device: f devices with late updates would otherwise be more than f updates."""
    newest: dict[str, int] = {}
    for one in contributions:
        newest[one.device] = max(one.round, newest.get(one.device, one.round))
    return [
        Verdict(one.weight)
        if one.round == newest[one.device]
        else Verdict(0.0, reason=f"the device's update of round {newest[one.device]} is in the same sum")
        for one in contributions
    ]


def _check_number(robustness: Robustness, found: int) -> None:
    if found < robustness.needed_devices:
        raise AdapterError(
            f"{robustness.rule} with byzantine = {robustness.byzantine} needs updates of {robustness.needed_devices} "
            f"devices and has {found}"
        )


def _judged(robustness: Robustness, inner: NDArray[np.float64], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Who is left out is chosen on what was sent; then what is left is held to the bound."""
    judged = list(verdicts)
    if robustness.rule == "multi_krum":
        scores = multi_krum_scores(inner, robustness.byzantine)
        farthest = np.argsort(scores, kind="stable")[len(scores) - robustness.byzantine :]
        for at in farthest:
            reason = (
                f"multi_krum: it lies farther from its neighbours than {len(scores) - robustness.byzantine} others "
                f"(score {scores[at]:.3g}, median {np.median(scores):.3g})"
            )
            judged[at] = Verdict(0.0, reason=reason)
    limit = robustness.max_update_norm
    for at, norm in enumerate(np.sqrt(np.maximum(np.diag(inner), 0.0))):
        if limit is not None and norm > limit and judged[at].weight > 0:
            reason = f"its change has norm {norm:.4g} and was clipped to {limit:g}"
            judged[at] = Verdict(judged[at].weight, float(limit / norm), reason)
    return judged


def _bounded(max_share: float, contributions: Sequence[Contribution], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts with the weights of each device, over all its updates, held to its share."""
    if max_share >= 1:
        return list(verdicts)
    totals: dict[str, float] = {}
    for one, verdict in sorted(
        zip(contributions, verdicts, strict=True), key=lambda pair: (pair[0].device, pair[0].round)
    ):
        if verdict.weight > 0:
            totals[one.device] = totals.get(one.device, 0.0) + verdict.weight
    shares = bounded_shares(totals, max_share)
    return [
        Verdict(shares[one.device] * (verdict.weight / totals[one.device]), verdict.share, verdict.reason)
        if verdict.weight > 0
        else verdict
        for one, verdict in zip(contributions, verdicts, strict=True)
    ]
