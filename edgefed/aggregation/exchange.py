"""What the coordinator asks of a method: make the first state, judge an update, merge a round, write the result.

The coordinator moves files and never looks into them. A state is a directory: `state.safetensors` with the server's own
exact values, the parts that are broadcast, and `manifest.json` that names them. Directories appear whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from edgefed.aggregation.options import ClientPrivacy
from edgefed.aggregation.robustness import UNDEFENDED, Robustness
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.protocol.messages.manifest import Manifest, Plan
from edgefed.protocol.tasks import Method

__all__ = ["Chosen", "Delivered", "Exchange", "ExchangeMaker", "Intervention", "MergedState"]


@dataclass(frozen=True, slots=True)
class Delivered:
    """One accepted update.

    Attributes:
        device: who sent it.
        round: the round it was trained in.
        weight: its share before normalisation.
        rank, held_rank: trained rank, and how much of the round's global adapter it started from or held.
        update: its file.
        start: directory of the state that its round started from.
        share: of what it changed that counts; less than 1 for one that is held to a bound.
    """

    device: str
    round: int
    weight: float
    rank: int
    held_rank: int
    update: Path
    start: Path
    share: float = 1.0


class Intervention(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted update that does not enter the sum as it came.

    Attributes:
        device: who sent it.
        round: the round it was trained in.
        what: `excluded` from the sum, or `clipped`.
        reason: why.
    """

    device: str
    round: int
    what: Literal["excluded", "clipped"]
    reason: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which updates a sum is made of.

    Attributes:
        delivered: those that enter it, with the weights that they have there.
        interventions: what was done about the others, and about those that are held to a bound.
    """

    delivered: tuple[Delivered, ...]
    interventions: tuple[Intervention, ...] = ()


@dataclass(frozen=True, slots=True)
class MergedState:
    """A state as the coordinator sees it.

    Attributes:
        manifest: the parts to broadcast, in order.
        files: part file by sha256.
        norm: Frobenius norm of the whole global adapter.
    """

    manifest: Manifest
    files: Mapping[str, Path]
    norm: float


class Exchange(Protocol):
    """One federation's method in action. All calls may be slow; none touches the network."""

    def begin(self, directory: Path) -> MergedState:
        """Makes the state before round 1 in `directory`, or returns it if it is there."""
        ...

    def load(self, directory: Path) -> MergedState:
        """Returns a state made earlier.

        Raises:
            AdapterError: it is damaged or not there.
        """
        ...

    def check(self, update: Path, plan: Plan, start: Path) -> None:
        """Judges an update before it may enter a sum; `start` is the state that its round started from.

        Raises:
            AdapterError: it is malformed, not finite, of wrong shapes, not of the announced rank, or over a bound.
        """
        ...

    def choose(self, delivered: Sequence[Delivered]) -> Chosen:
        """Decides which of a round's updates are merged, and with which weights; the same input, the same answer."""
        ...

    def merge(self, before: Path, delivered: Sequence[Delivered], round_: int, after: Path) -> MergedState:
        """Merges a round into a new state directory; the same input gives the same bytes, but for private noise."""
        ...

    def export(self, state: Path, output: Path, *, rank: int | None = None) -> None:
        """Writes what users load: for LoRA a PEFT adapter directory, cut to `rank` where one is given."""
        ...


class ExchangeMaker(Protocol):
    """Makes the exchange of a method for one base model."""

    def __call__(
        self,
        method: Method,
        optimizer: ServerOptimizer,
        *,
        model_path: Path,
        model_name: str,
        seed: int,
        memory_limit_bytes: int | None = None,
        privacy: ClientPrivacy | None = None,
        robustness: Robustness = UNDEFENDED,
    ) -> Exchange:
        """Returns the exchange.

        Args:
            method: what is exchanged, and how it is combined.
            optimizer: how the combined update moves the global state.
            model_path: the base model's directory.
            model_name: as the result shall name it.
            seed: of everything that is drawn.
            memory_limit_bytes: bound on a merge's working memory; None for no bound.
            privacy: noise in every merge; None, or a noise multiplier of 0, adds none.
            robustness: bounds on single devices, and who is left out of a sum.

        Raises:
            ModelError: the model has none of the method's target modules.
            ConfigError: the options do not go together.
        """
        ...
