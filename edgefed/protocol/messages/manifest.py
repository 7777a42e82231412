"""The global adapter as it travels: its parts, all of them, and how much of it a device intends to hold and train."""

from __future__ import annotations

import msgspec

from edgefed.protocol.messages.wire import Sha256, Wire
from edgefed.protocol.records import Count, PositiveCount
from edgefed.protocol.tasks import Quantization

__all__ = ["Manifest", "Part", "Plan"]


class Part(Wire, frozen=True, kw_only=True):
    """One blob of the global state: a rank layer [rank_lo, rank_hi) of the adapter."""

    sha256: Sha256
    size_bytes: PositiveCount
    rank_lo: Count = 0
    rank_hi: Count = 0


class Manifest(Wire, frozen=True, kw_only=True):
    """The global adapter that a round starts from, as parts in order; none before anything was learned."""

    parts: list[Part] = msgspec.field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts together."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def rank(self) -> int:
        """Rank of the whole global adapter."""
        return max((part.rank_hi for part in self.parts), default=0)


class Plan(Wire, frozen=True, kw_only=True):
    """What a device intends.

    Attributes:
        rank: that it trains.
        held_rank: of the prefix of the global adapter that it holds.
        quantization: precision of its base weights.
        micro_batch_size: examples per forward pass; 0 leaves it to the federation.
        gradient_checkpointing: it recomputes activations, whether or not the federation asks for it.
    """

    rank: PositiveCount
    held_rank: Count
    quantization: Quantization
    micro_batch_size: Count = 0
    gradient_checkpointing: bool = False
