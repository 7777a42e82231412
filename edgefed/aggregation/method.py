"""What an aggregation method is: a record of pure functions over explicit state.

A method reads the devices' updates module by module through the callables of `Contribution`, so that a merge
never holds more than one module of each device, and returns a new `GlobalState`. Nothing else is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgefed.aggregation.options import ClientPrivacy
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.errors import AdapterError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.svd import Float32
from edgefed.lora.tensor_file import open_tensors, write_tensors

__all__ = [
    "Aggregation",
    "ApplyFunction",
    "Contribution",
    "GlobalState",
    "InitFunction",
    "PrivateApplyFunction",
    "load_state",
    "normalized",
    "save_state",
]

_FORMAT = "edgefed-state/1"


@dataclass(frozen=True, slots=True)
class Contribution:
    """One device's accepted update.

    Attributes:
        device: its id.
        weight: its share before normalization, over 0: examples, a staleness discount, whatever is configured.
        rank: of the factors it trained.
        held_rank: how many components of the global adapter it started from or held frozen; 0 for none.
        update: module path -> s·B·A as sent: the whole trained adapter for "truncated" methods, the fresh factors
            alone for "frozen" ones.
        start: module path -> the global adapter as published in the round it trained for, at full rank; its
            first ``held_rank`` components are what the device had.
        round: which round that was. One device may contribute once per round.
    """

    device: str
    weight: float
    rank: int
    held_rank: int
    update: Callable[[str], LowRank]
    start: Callable[[str], LowRank]
    round: int = 0


@dataclass(frozen=True, slots=True)
class GlobalState:
    """What a federation carries from round to round.

    Attributes:
        adapter: module path -> the global matrix, largest components first.
        optimizer: name -> array of the server optimizer's memory, named "<module>:<slot>".
        round: how many rounds have been merged into it.
    """

    adapter: dict[str, LowRank]
    optimizer: dict[str, NDArray[np.float32]]
    round: int

    def slots(self, module: str) -> dict[str, Float32]:
        """The optimizer's arrays of one module, by slot."""
        prefix = f"{module}:"
        return {name.removeprefix(prefix): array for name, array in self.optimizer.items() if name.startswith(prefix)}


class InitFunction(Protocol):
    """Makes the state before round 1."""

    def __call__(self, shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> GlobalState:
        """A global adapter that changes nothing.

        Args:
            shapes: module path -> (out_features, in_features).
            rank: of the server.
            seed: of random rows.
        """


class ApplyFunction(Protocol):
    """Merges a round."""

    def __call__(
        self,
        state: GlobalState,
        contributions: Sequence[Contribution],
        *,
        rank: int,
        optimizer: ServerOptimizer,
        seed: int,
        memory_limit_bytes: int | None = None,
        trim: int = 0,
    ) -> GlobalState:
        """The state after the round.

        The result does not depend on the order of the contributions, to the last bit.

        Args:
            state: before the round; left as it is.
            contributions: at least one.
            rank: of the server: the largest the global adapter may have.
            optimizer: the server's step along the aggregate.
            seed: of random rows; vary it with the round.
            memory_limit_bytes: bound on a merge's working memory, for one module; None for no bound. A trimmed mean
                keeps to none.
            trim: how many of the smallest and of the largest values of each coordinate are left out of the mean.

        Raises:
            AdapterError: no contributions, a weight that is not over 0, one device twice for one round, an update
                whose rank or shape is not as announced.
            ConfigError: the optimizer or a trimmed mean does not go with the method, or the memory limit is too small.
        """


class PrivateApplyFunction(Protocol):
    """Merges a round so that no device can be told from it."""

    def __call__(
        self,
        state: GlobalState,
        contributions: Sequence[Contribution],
        *,
        rank: int,
        optimizer: ServerOptimizer,
        seed: int,
        privacy: ClientPrivacy,
    ) -> GlobalState:
        """The state after the round, with fresh noise in it each time.

        Args as of `ApplyFunction`, whose errors it raises; the weights of the contributions do not count.

        Args:
            state: before the round.
            contributions: at least one, and one per device.
            rank: of the server.
            optimizer: the server's step.
            seed: of random rows.
            privacy: clip norm and noise.
        """


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One published way to combine updates of different ranks.

    Attributes:
        name: as configured.
        start: how devices use the global adapter: "truncated" ones train on from its first components and send
            the whole, "frozen" ones hold it fixed, train fresh factors beside it and send those. The global
            adapter of a "frozen" method starts with rank 0 and grows.
        equal_ranks: whether all devices must train the server's rank.
        init: makes the state before round 1.
        apply: merges a round.
        decomposes: whether merging decomposes sums, which takes memory that can be bounded.
        apply_private: merges a round with noise; None where the method is no sum of changes that could be bounded.
        space: what is summed, and so what the size of an update and the distance of two are measured on: the
            "products" s·B·A, or the "factors" themselves, where one product may come as harmless or as huge factors.
        weighs_by_size: whether an update's own size multiplies its weight.
        untrimmed_because: why it can take no trimmed mean; "" where it can.
    """

    name: str
    start: Literal["truncated", "frozen"]
    equal_ranks: bool
    init: InitFunction
    apply: ApplyFunction
    decomposes: bool = False
    apply_private: PrivateApplyFunction | None = None
    space: Literal["products", "factors"] = "products"
    weighs_by_size: bool = False
    untrimmed_because: str = ""


def normalized(contributions: Sequence[Contribution]) -> list[tuple[float, Contribution]]:
    """The contributions with weights that add up to 1, in an order that does not depend on arrival.

    Raises:
        AdapterError: no contributions, a weight that is not over 0, or one device twice for one round.
    """
    ordered = sorted(contributions, key=lambda one: (one.device, one.round))
    if not ordered:
        raise AdapterError("a round without contributions cannot be merged")
    for one, other in pairwise(ordered):
        if (one.device, one.round) == (other.device, other.round):
            raise AdapterError(f"device {one.device!r} contributes twice for round {one.round}")
    for one in ordered:
        if not 0 < one.weight < float("inf"):
            raise AdapterError(f"device {one.device!r} has weight {one.weight}; it must be over 0 and finite")
    total = sum(one.weight for one in ordered)
    return [(one.weight / total, one) for one in ordered]


def save_state(path: Path, state: GlobalState) -> None:
    """Writes the state to one safetensors file, atomically, every bit of it.

    Args:
        path: replaced if it exists.
        state: to be kept.
    """
    tensors: dict[str, NDArray[np.float32]] = {}
    for module, matrix in state.adapter.items():
        tensors[f"adapter/{module}/left"] = matrix.left
        tensors[f"adapter/{module}/right"] = matrix.right
    for name, array in state.optimizer.items():
        tensors[f"optimizer/{name}"] = array
    write_tensors(path, tensors, {"format": _FORMAT, "round": str(state.round)})


def load_state(path: Path) -> GlobalState:
    """The state that `save_state` wrote.

    Raises:
        AdapterError: the file is missing, malformed, or not a state.
    """
    file = open_tensors(path)
    merged = file.metadata.get("round", "")
    if file.metadata.get("format") != _FORMAT or not merged.isdecimal():
        raise AdapterError(f"{path}: not a state: its metadata does not say {_FORMAT} and a round")
    adapter: dict[str, LowRank] = {}
    optimizer: dict[str, NDArray[np.float32]] = {}
    for name in sorted(file.entries):
        kind, _, rest = name.partition("/")
        module, _, side = rest.rpartition("/")
        if kind == "optimizer":
            optimizer[rest] = file.read(name)
        elif kind == "adapter" and side == "left":
            adapter[module] = LowRank(file.read(name), file.read(f"adapter/{module}/right"))
        elif kind != "adapter" or side != "right":
            raise AdapterError(f"{path}: tensor {name!r} does not belong to a state")
    return GlobalState(adapter, optimizer, int(merged))
