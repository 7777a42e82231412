"""Cutting the global adapter by rank, so that each device fetches only the prefix it can hold.

The global factors are ordered by importance (they come from an SVD, or are stacked by age), so an adapter of rank r is
the first r components of every larger one. The aggregator publishes the components once, cut at the ranks that devices
use: for ranks 4, 8 and 64 the layers are [0, 4) [4, 8) [8, 64). A device of rank 8 needs the first two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from edgefed.errors import ConfigError

__all__ = ["boundaries", "layers_within"]


def boundaries(ranks: Iterable[int], total_rank: int) -> tuple[tuple[int, int], ...]:
    """Returns the half-open rank intervals that cover [0, total_rank), cut at each of `ranks`.

    Args:
        ranks: the ranks that devices may hold; those of `total_rank` and above cut nothing.
        total_rank: rank of the whole global adapter; 0 gives no layers.

    Raises:
        ConfigError: a rank is below 1, or `total_rank` below 0.
    """
    cuts = sorted(set(ranks))
    if cuts and cuts[0] < 1:
        raise ConfigError(f"rank {cuts[0]} is not possible: ranks start at 1")
    if total_rank < 0:
        raise ConfigError(f"total rank {total_rank} is negative")
    edges = [0, *(r for r in cuts if r < total_rank), total_rank]
    return tuple((lo, hi) for lo, hi in pairwise(edges) if hi > lo)


def layers_within(layers: Sequence[tuple[int, int]], rank: int) -> int:
    """Returns how many of the leading `layers` a device that holds `rank` components needs.

    The last of them may reach beyond `rank` when no cut was made there; the device then drops the surplus.
    """
    return sum(1 for lo, _ in layers if lo < rank)
