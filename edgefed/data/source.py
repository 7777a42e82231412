"""Where a device's examples are, and which of them it holds back to evaluate on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

__all__ = ["DataSource", "hold_back"]

_T = TypeVar("_T")


class DataSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where the examples are. They never leave the device.

    Attributes:
        path: a JSONL or CSV file, or a directory of them.
        validation: the same, held back from training to evaluate on; empty holds back a share of `path`.
        fields: names of this device's fields by the names that the federation uses, where they differ.
    """

    path: Annotated[str, Meta(min_length=1)]
    validation: str = ""
    fields: dict[str, str] = {}


def hold_back(examples: Sequence[_T], share: float, *, seed: int) -> tuple[list[_T], list[_T]]:
    """Returns (kept, held back): the same split for the same examples and seed, in the given order.

    At least one example is held back where there are two, and at least one is kept.
    """
    count = min(len(examples) - 1, max(1, round(len(examples) * share))) if len(examples) > 1 else 0
    held = set(random.Random(f"hold-back/{seed}").sample(range(len(examples)), count))
    kept = [example for index, example in enumerate(examples) if index not in held]
    return kept, [examples[index] for index in sorted(held)]
