"""What whoever runs a federation says in `federation.toml`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edgefed.aggregation.options import ClientPrivacy, ServerOptimizer
from edgefed.aggregation.robustness import Robustness
from edgefed.coordinator.divergence import Divergence
from edgefed.coordinator.round_state import Rules
from edgefed.coordinator.selection import Selection
from edgefed.errors import ConfigError
from edgefed.protocol.tasks import (
    LEAST_NOISE,
    Evaluation,
    LoraMethod,
    Method,
    ModelReference,
    Privacy,
    SummarizationTask,
    Training,
)
from edgefed.protocol.topics import check_id
from edgefed.transport.options import Broker

__all__ = ["AggregatorMachine", "FederationOptions", "Transfers"]


class Transfers(msgspec.Struct, frozen=True, kw_only=True):
    """How updates come in and the global adapter goes out.

    Attributes:
        chunk_bytes: data per message; less where the broker takes less. 98304 suits every broker in use.
        uploads_at_once: devices that may send at the same time; the others wait their turn.
        window_chunks: chunks that a device may be ahead of what has arrived. Times `uploads_at_once` it must stay below
            the broker's queue (1000 messages in Mosquitto), which overflows silently.
        broadcast_settle_s: how long requests for the same adapter are collected before it is broadcast once for all.
        max_update_bytes: larger updates are refused.
        max_messages_per_minute: how many messages of a device are heard, chunks and pings apart.
    """

    chunk_bytes: Annotated[int, Meta(ge=1024, le=268_000_000)] = 98_304
    uploads_at_once: Annotated[int, Meta(ge=1)] = 8
    window_chunks: Annotated[int, Meta(ge=2)] = 64
    broadcast_settle_s: Annotated[float, Meta(ge=0)] = 1.0
    max_update_bytes: Annotated[int, Meta(ge=1)] = 2_147_483_648
    max_messages_per_minute: Annotated[int, Meta(ge=60)] = 600

    def __post_init__(self) -> None:
        """Refuses windows that together overflow a broker's queue."""
        if self.uploads_at_once * self.window_chunks > 900:
            raise ValueError(
                f"uploads_at_once ({self.uploads_at_once}) times window_chunks ({self.window_chunks}) must be at most "
                "900: brokers drop what is queued beyond 1000 messages"
            )


class AggregatorMachine(msgspec.Struct, frozen=True, kw_only=True):
    """What the aggregator may take of the machine that it runs on.

    Attributes:
        merge_memory_bytes: bound on the working memory of a merge, beside the matrix at hand; merging gets slower where
            the fastest way does not fit. Without it the fastest way is taken. It is for flexlora, delta and
            frozen_global with averaging or momentum; the other methods decompose nothing, or always in full, and a
            trimmed mean always forms the matrix.
    """

    merge_memory_bytes: Annotated[int, Meta(ge=1)] | None = None


class FederationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `federation.toml`.

    Attributes:
        fleet: the fleet whose devices take part.
        rounds: rounds of training.
        seed: of everything that is drawn: selection, data order, initial factors.
        target_loss: end early once the evaluated loss is at most this; needs evaluation.
        directory: the run's directory: store, history, adapters.
        roster: where labels, and who is paused, drained or removed, are kept for all federations that name the same
            file; empty keeps them in the run's directory, for this one alone.
        model: the base model.
        task: what is learned.
        method: what is exchanged, and how it is combined.
        server_optimizer: how the combined update moves the global adapter.
        training: local training in each round.
        evaluation: evaluation on the devices.
        privacy: differential privacy of the examples on the devices.
        client_privacy: differential privacy of whole devices in what the aggregator sends out.
        selection: who takes part, and when a round closes.
        robustness: what a single device may do to a sum.
        divergence: what is done about a global adapter that has become much worse, or is no longer finite.
        transfers: chunks and windows.
        aggregator: what the aggregator may take of its machine.
        broker: how to reach the broker.
        models: local directories by model names, where the model is not to be looked up.
    """

    fleet: str
    rounds: Annotated[int, Meta(ge=1)] = 10
    seed: int = 0
    target_loss: Annotated[float, Meta(gt=0)] | None = None
    directory: Annotated[str, Meta(min_length=1)] = "edgefed-run"
    roster: str = ""
    model: ModelReference
    task: SummarizationTask = SummarizationTask()
    method: Method = LoraMethod()
    server_optimizer: ServerOptimizer = ServerOptimizer()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    privacy: Privacy = Privacy()
    client_privacy: ClientPrivacy = ClientPrivacy()
    selection: Selection = Selection()
    robustness: Robustness = Robustness()
    divergence: Divergence = Divergence()
    transfers: Transfers = Transfers()
    aggregator: AggregatorMachine = AggregatorMachine()
    broker: Broker = Broker()
    models: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Refuses what the tables say of each other and cannot be, and a fleet name that could not be a topic level."""
        try:
            check_id(self.fleet, "fleet name")
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if self.target_loss is not None and not self.evaluation.every:
            raise ValueError("target_loss needs evaluation: set evaluation.every to 1 or more")
        twice = sorted({rank for rank in self.method.ranks if self.method.ranks.count(rank) > 1})
        if twice:
            raise ValueError(f"method.ranks lists {', '.join(map(str, twice))} more than once: name every rank once")
        noise = self.client_privacy.noise_multiplier
        if 0 < noise < LEAST_NOISE:
            raise ValueError(
                f"client_privacy.noise_multiplier is {noise:g}; below {LEAST_NOISE} ε says nothing: "
                "take 0, or at least that"
            )
        if noise and self.selection.late != "drop":
            raise ValueError('client_privacy needs selection.late = "drop": late, a device could be in a sum twice')
        self.robustness.check_quorum(self.selection.quorum)

    @property
    def rules(self) -> Rules:
        """What the round machine is told."""
        return Rules(
            rounds=self.rounds,
            selection=self.selection,
            final_evaluation=bool(self.evaluation.every),
            target_loss=self.target_loss,
            seed=self.seed,
            divergence=self.divergence,
        )
