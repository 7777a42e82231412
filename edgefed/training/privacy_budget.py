"""What private training has cost so far and will cost next, as values: light enough for the supervisor."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["EXAMPLE_ASSUMPTIONS", "PrivacyCost", "PrivacySpent", "SpentSteps"]

EXAMPLE_ASSUMPTIONS = (
    "for one training example more or less, against whoever sees all that the device sends; each step takes every "
    "example with the same secret probability; noise is exact, floating point and all; Rényi accounting, over all "
    "rounds of this federation. Not covered: the number of examples, the plan, run times, energy and memory count as "
    "public, and so does what is held back for evaluation: its loss is reported as it is"
)
"""What ε of a device stands on, in words: it travels and is shown beside the number."""


class SpentSteps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps of DP-SGD that were paid for. Devices keep them: what a newer release adds must not be read over.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clip norm.
        sample_rate: probability that a step takes an example.
        steps: how many.
    """

    noise_multiplier: Annotated[float, Meta(gt=0)]
    sample_rate: Annotated[float, Meta(gt=0, le=1)]
    steps: Annotated[int, Meta(ge=1)]


class PrivacySpent(msgspec.Struct, frozen=True, kw_only=True):
    """What a device has spent, as the supervisor tells the worker.

    Attributes:
        this_run: in the federation at hand.
        other_runs: in all others.
        owners_delta: δ that the device's owner counts with.
    """

    this_run: list[SpentSteps] = []
    other_runs: list[SpentSteps] = []
    owners_delta: Annotated[float, Meta(gt=0, lt=1)] = 1e-5


class PrivacyCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a round will cost, as the worker has worked it out.

    Attributes:
        steps: of this round.
        run_epsilon: ε of this federation with the round in it, at the federation's δ.
        device_epsilon: ε of everything this device ever sent, with the round in it, at the owner's δ.
    """

    steps: SpentSteps
    run_epsilon: Annotated[float, Meta(ge=0)]
    device_epsilon: Annotated[float, Meta(ge=0)]
