"""The privacy of devices that a federation's sums have cost, told from the record of its merged rounds.

A sum is charged in the transaction that makes its result known to the round machine, so before it is announced. A
merge that a kill has cut short is made again with other noise; nobody has seen the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from edgefed.aggregation.options import CLIENT_ASSUMPTIONS, ClientPrivacy
from edgefed.coordinator.answers import MergedRound

__all__ = ["spent_by", "with_privacy"]


def with_privacy(merged: MergedRound, earlier: Sequence[MergedRound], privacy: ClientPrivacy) -> MergedRound:
    """Returns the record with ε so far, this round included; as it is where no noise was added."""
    if not privacy.noise_multiplier:
        return merged
    epsilon = privacy.epsilon(_most_sums([*earlier, merged]))
    return msgspec.structs.replace(merged, epsilon=epsilon, delta=privacy.delta, privacy_assumptions=CLIENT_ASSUMPTIONS)


def spent_by(merged: MergedRound, earlier: Sequence[MergedRound], privacy: ClientPrivacy) -> str:
    """Returns why no sum may follow this one, "" where one may.

    It may not where the device that is in the most sums could not be in another: who takes part is not known before.
    """
    if privacy.max_epsilon is None:
        return ""
    most = _most_sums([*earlier, merged])
    following = privacy.epsilon(most + 1)
    if following <= privacy.max_epsilon:
        return ""
    return (
        f"the privacy budget has run out: ε of devices is {privacy.epsilon(most):.3g} (δ = {privacy.delta:g}), "
        f"another round could make it {following:.3g}, and {privacy.max_epsilon:g} is allowed"
    )


def _most_sums(rounds: Sequence[MergedRound]) -> int:
    return max(Counter(device for one in rounds for device in one.devices).values(), default=0)
