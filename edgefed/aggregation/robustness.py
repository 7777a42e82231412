"""How far one device may move a sum, and what is done about devices that send anything but honest updates: options.

It stands apart from the arithmetic so that configurations can be read where numpy is not installed.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["UNDEFENDED", "Robustness", "Rule"]

Rule = Literal["none", "multi_krum", "trimmed_mean"]


class Robustness(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what a single device does to the sum, and rules that leave out devices or values that stand apart.

    Attributes:
        rule: `multi_krum` leaves out the `byzantine` updates that lie farthest from their neighbours; `trimmed_mean`
            leaves out the `byzantine` largest and smallest values of each coordinate, with flexlora, delta,
            frozen_global and fedit. Under both, a device has one update in a sum, its newest.
        byzantine: how many devices of a round may be faulty or hostile. A round then needs 2 · byzantine + 3 updates
            for multi_krum and 2 · byzantine + 1 for trimmed_mean: `selection.quorum` must be at least that.
        max_examples: the most examples that a device weighs with; who claims more weighs as if it had that many.
        max_weight_share: no device has more than this share of a sum, whatever it claims; the others have the rest in
            proportion. `selection.quorum` devices must be able to share out the whole.
        max_update_norm: bound on the Frobenius norm of what a device changed in a round, over all modules.
        over_norm: an update over that bound is made shorter (`clip`) or refused (`reject`).
    """

    rule: Rule = "none"
    byzantine: Annotated[int, Meta(ge=0)] = 0
    max_examples: Annotated[int, Meta(ge=1)] | None = None
    max_weight_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    max_update_norm: Annotated[float, Meta(gt=0)] | None = None
    over_norm: Literal["clip", "reject"] = "clip"

    def __post_init__(self) -> None:
        """Refuses options that would do nothing."""
        if self.rule == "none" and self.byzantine:
            raise ValueError('byzantine has no effect without a rule: set rule to "multi_krum" or "trimmed_mean"')
        if self.rule != "none" and not self.byzantine:
            raise ValueError(f"{self.rule} must know how many devices may be hostile: set byzantine to 1 or more")
        if self.over_norm == "reject" and self.max_update_norm is None:
            raise ValueError("over_norm has no effect without max_update_norm")

    @property
    def needed_devices(self) -> int:
        """Updates of different devices that the rule needs in each sum."""
        return {"none": 1, "multi_krum": 2 * self.byzantine + 3, "trimmed_mean": 2 * self.byzantine + 1}[self.rule]

    def check_quorum(self, quorum: int) -> None:
        """Refuses a quorum with which a round could close and the promises above could not be kept.

        Raises:
            ValueError: in words, with the quorum that would do.
        """
        if quorum < self.needed_devices:
            raise ValueError(
                f"{self.rule} with byzantine = {self.byzantine} needs {self.needed_devices} updates in each round, and "
                f"a round may close with {quorum}: raise selection.quorum to {self.needed_devices} or lower byzantine"
            )
        summed = quorum - (self.byzantine if self.rule == "multi_krum" else 0)
        if summed * self.max_weight_share < 1 - 1e-9:
            raise ValueError(
                f"max_weight_share is {self.max_weight_share:g}, and a round may be the sum of {summed} updates, "
                f"one of which has at least {1 / summed:.3g} of it: raise max_weight_share or selection.quorum"
            )


UNDEFENDED = Robustness()
"""No bound and no rule: whoever takes part is trusted."""
