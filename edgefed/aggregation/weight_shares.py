"""Shares of a sum, none of them over a bound: what a device claims cannot make the sum its own."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["bounded_shares"]


def bounded_shares(weights: Mapping[str, float], max_share: float) -> dict[str, float]:
    """Returns shares that add up to 1, in proportion to the weights but for those that the bound holds down.

    Water-filling: whoever is over the bound gets the bound, and the others have what is left in proportion to their
    weights, until nobody is over it. The order of shares is that of the weights.

    Args:
        weights: by device, each over 0 and finite.
        max_share: in (0, 1]. Where the devices are too few to share out the whole within it, all get the same.
    """
    largest = max(weights.values(), default=1.0)
    scaled = {device: weight / largest for device, weight in weights.items()}  # a sum of large ones may overflow
    bound = max(max_share, 1 / len(weights)) if weights else max_share
    held: set[str] = set()
    while True:
        rest = sum(weight for device, weight in scaled.items() if device not in held)
        left = 1 - bound * len(held)
        shares = {device: bound if device in held else left * (scaled[device] / rest) for device in scaled}
        over = {device for device, share in shares.items() if share > bound}
        if not over:
            return shares
        held |= over
