"""Splitting one data set over devices, the ways in which federations are usually tested.

- `by_key`: a device gets whole groups of a field (all dialogues of one section, say): natural non-IID data.
- `dirichlet`: each group is spread over the devices in proportions drawn from a Dirichlet distribution of concentration
  α (arXiv 1909.06335): small α gives each device few groups, large α gives all the same mix.
- `uniform`: a random split into equal shares.

Row numbers go in, row numbers come out, so the rows themselves may be anything. Every row goes to exactly one device.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from edgefed.errors import ConfigError

__all__ = ["by_key", "dirichlet", "uniform"]

_LARGEST_ALPHA = 1e6  # far beyond that all shares are equal, and the gamma draw does not come to an end


def uniform(rows: int, devices: int, *, seed: int = 0) -> list[list[int]]:
    """Returns sorted row numbers per device, shares differing by at most one.

    Raises:
        ConfigError: fewer rows than devices.
    """
    _check(rows, devices)
    order = list(range(rows))
    random.Random(f"uniform/{seed}").shuffle(order)
    return [sorted(order[device::devices]) for device in range(devices)]


def by_key(keys: Sequence[Hashable], devices: int) -> list[list[int]]:
    """Returns sorted row numbers per device, rows of one key staying together where there are keys enough.

    Keys are dealt out largest first, each to the device with the fewest rows so far. With fewer keys than devices, the
    largest keys are halved (in row order) until every device can have some.

    Raises:
        ConfigError: fewer rows than devices.
    """
    _check(len(keys), devices)
    groups = list(_groups(keys).values())
    while len(groups) < devices:
        groups.sort(key=len)
        largest = groups.pop()
        middle = len(largest) // 2
        groups += [largest[:middle], largest[middle:]]
    groups.sort(key=lambda group: (-len(group), group[0]))
    shares: list[list[int]] = [[] for _ in range(devices)]
    for group in groups:
        min(shares, key=len).extend(group)
    return [sorted(share) for share in shares]


def dirichlet(
    keys: Sequence[Hashable], devices: int, *, alpha: float, seed: int = 0, minimum: int = 1
) -> list[list[int]]:
    """Returns sorted row numbers per device, each key's rows spread in Dirichlet(alpha) proportions.

    A device left with fewer than `minimum` rows is given rows of the one that has most: drawing again until all have
    enough, as is often done, never ends for many devices and a small alpha.

    Args:
        keys: each row's group.
        devices: how many devices.
        alpha: concentration, above 0 and at most a million; 0.1 to 1 are usual for non-IID tests.
        seed: of the draw.
        minimum: rows that every device gets at least.

    Raises:
        ConfigError: alpha is not possible, or there are not rows enough.
    """
    _check(len(keys), devices, minimum)
    if not 0 < alpha <= _LARGEST_ALPHA:
        raise ConfigError(f"alpha {alpha} is not possible: it is above 0 and at most {_LARGEST_ALPHA:g}")
    draw = random.Random(f"dirichlet/{seed}")
    shares: list[list[int]] = [[] for _ in range(devices)]
    for group in _groups(keys).values():
        draw.shuffle(group)
        weights = [draw.gammavariate(alpha, 1.0) for _ in range(devices)]
        total = sum(weights)
        if total == 0.0:  # every draw underflowed, as happens for a tiny alpha: the limit is one device taking all
            weights[draw.randrange(devices)] = total = 1.0
        start, reached = 0, 0.0
        for share, weight in zip(shares, weights, strict=True):
            reached += weight
            stop = len(group) if share is shares[-1] else round(len(group) * min(1.0, reached / total))
            share.extend(group[start:stop])
            start = stop
    for share in shares:
        while len(share) < minimum:
            share.append(max(shares, key=len).pop())
    return [sorted(share) for share in shares]


def _groups(keys: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return groups


def _check(rows: int, devices: int, minimum: int = 1) -> None:
    if devices < 1:
        raise ConfigError("a partition needs at least one device")
    if minimum < 0:
        raise ConfigError(f"a device cannot have at least {minimum} rows")
    if rows < devices * minimum:
        raise ConfigError(
            f"{rows} rows cannot give {devices} devices at least {'one' if minimum == 1 else minimum} each"
        )
