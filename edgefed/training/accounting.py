"""ε of DP-SGD, by opacus' Rényi accountant of the Poisson-sampled Gaussian mechanism.

Mironov, Talwar, Zhang: "Rényi Differential Privacy of the Sampled Gaussian Mechanism" (arXiv 1908.10530); from there to
(ε, δ) as in Balle et al. (arXiv 1905.09982). opacus' tighter accountant (PRV, arXiv 2106.02848) convolves over a grid
that grows with ε: for 3000 steps with little noise it took more memory than a board has. Rényi's bound needs a
constant amount, and was 5 to 11 % above it where both could be had.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from edgefed.protocol.messages.retained import RoundOpen
from edgefed.training.options import sample_rate
from edgefed.training.privacy_budget import PrivacyCost, PrivacySpent, SpentSteps

__all__ = ["cost_of", "epsilon_of"]

_ORDERS = [*(1 + step / 20 for step in range(1, 200)), *range(11, 64), *(2**power for power in range(6, 13))]


def epsilon_of(spent: Sequence[SpentSteps], delta: float) -> float:
    """Returns ε of all these steps together at this δ; 0 of none. Never less than the truth."""
    if not spent:
        return 0.0
    from opacus.accountants.analysis import rdp  # late: it takes a second, and most federations have no use for it

    with warnings.catch_warnings():
        # With very much or very little noise the best order is the last of the list: the bound is then looser.
        warnings.filterwarnings("ignore", message="Optimal order is", category=UserWarning)
        curve = sum(
            rdp.compute_rdp(q=one.sample_rate, noise_multiplier=one.noise_multiplier, steps=one.steps, orders=_ORDERS)
            for one in spent
        )
        epsilon = float(rdp.get_privacy_spent(orders=_ORDERS, rdp=curve, delta=delta)[0])
    return epsilon if math.isfinite(epsilon) else math.inf


def cost_of(announced: RoundOpen, examples: int, spent: PrivacySpent) -> PrivacyCost | None:
    """Returns what a round will cost a device with so many training examples; None where nothing private is trained."""
    privacy = announced.privacy
    if announced.kind != "train" or not privacy.example_noise_multiplier:
        return None
    steps = SpentSteps(
        noise_multiplier=privacy.example_noise_multiplier,
        sample_rate=sample_rate(announced.training.batch_size, examples),
        steps=announced.training.local_steps,
    )
    return PrivacyCost(
        steps=steps,
        run_epsilon=epsilon_of([*spent.this_run, steps], privacy.delta),
        device_epsilon=epsilon_of([*spent.this_run, *spent.other_runs, steps], spent.owners_delta),
    )
