"""ε of sums with Gaussian noise, exactly: no sampling is assumed, so no accountant needs to bound anything.

T releases with noise of z times the sensitivity are together one release with noise of z/√T times it (Dong, Roth, Su:
"Gaussian Differential Privacy", arXiv 1905.02383, Corollary 3.3), and of one release δ(ε) is known in closed form
(Balle, Wang, arXiv 1805.06530, Theorem 8):

    δ(ε) = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ)   with μ = √T/z
"""

from __future__ import annotations

import math

__all__ = ["gaussian_epsilon"]

_MOST_EPSILON = 1e6
_HALVINGS = 200


def gaussian_epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Returns ε at this δ; 0 of no release, infinity above a million. Rounded upwards, by less than 1e-9 of itself.

    Args:
        noise_multiplier: standard deviation of the noise over the sensitivity.
        releases: how many sums one party was in.
        delta: δ.
    """
    if not releases:
        return 0.0
    mu = math.sqrt(releases) / noise_multiplier
    if _delta(mu, 0.0) <= delta:
        return 0.0
    if _delta(mu, _MOST_EPSILON) > delta:
        return math.inf
    low, high = 0.0, _MOST_EPSILON
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(mu, middle) > delta else (low, middle)
    return high * (1 + 1e-10)


def _delta(mu: float, epsilon: float) -> float:
    second = _phi(-mu / 2 - epsilon / mu)
    return _phi(mu / 2 - epsilon / mu) - (math.exp(epsilon + math.log(second)) if second > 0 else 0.0)


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
