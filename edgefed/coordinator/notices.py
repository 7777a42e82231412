"""What the broker keeps of an aggregator for whoever comes later: its state, the open round, the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edgefed.coordinator.holding import why_waiting
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.outbox import Outbox
from edgefed.coordinator.refusals import Refusals
from edgefed.coordinator.round_state import State
from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.messages.retained import (
    AggregatorState,
    FederationFinished,
    RoundOpen,
)
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.tasks import ModelReference
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Will

__all__ = ["Notices", "aggregator_will"]

_log = logging.getLogger(__name__)

_SHORTEST_STATE_S = 0.5


def aggregator_will(topics: Topics, instance: str) -> Will:
    """Returns what the broker publishes when the aggregator with this id of its process vanishes."""
    return Will(topics.aggregator_state, encode(AggregatorState(status="lost", instance=instance)))


class Notices:
    """The retained messages of one run.

    Args:
        options: what `federation.toml` says.
        model: the base model with its fingerprint.
        run: id of this run.
        instance: id of this process.
        outbox: where they go out.
        watch: called with each new state, for whoever shows it.
        sealing_key: what devices have to seal their updates for; empty where they need not.
    """

    def __init__(
        self,
        options: FederationOptions,
        model: ModelReference,
        run: str,
        instance: str,
        outbox: Outbox,
        *,
        watch: Callable[[AggregatorState], None] | None = None,
        sealing_key: str = "",
    ) -> None:
        self._options = options
        self._model = model
        self._run = run
        self._topics = Topics(options.fleet)
        self._outbox = outbox
        self._watch = watch
        self._sealing_key = sealing_key
        self._instance = instance
        self._published: AggregatorState | None = None
        self._published_at_s = 0.0

    def post_round(self, state: State, manifest: Manifest) -> None:
        """Announces the open round, which starts from this global adapter."""
        options = self._options
        every = options.evaluation.every
        announcement = RoundOpen(
            run=self._run,
            round=state.round,
            rounds=options.rounds,
            kind=state.kind,
            model=self._model,
            task=options.task,
            method=options.method,
            training=options.training,
            evaluation=options.evaluation,
            evaluates=state.kind == "evaluate" or bool(every and (state.round - 1) % every == 0),
            deadline_s=options.selection.deadline_s,
            late_is_used=options.selection.late == "discount" and state.round < options.rounds,
            privacy=options.privacy,
            seed=options.seed,
            manifest=manifest,
            sealing_key=self._sealing_key,
        )
        self._outbox.post(self._topics.round, announcement)

    def post_end(self, round_: int, reason: str) -> None:
        """Announces that no further round will come."""
        self._outbox.post(self._topics.round, FederationFinished(run=self._run, round=round_, reason=reason))

    def post_state(self, described: AggregatorState, *, at_once: bool = False) -> None:
        """Publishes the aggregator's state if it has changed; not too often, unless `at_once`."""
        due = time.monotonic() - self._published_at_s >= _SHORTEST_STATE_S
        if described != self._published and (due or at_once):
            self._published = described
            self._published_at_s = time.monotonic()
            self._outbox.post(self._topics.aggregator_state, described)
            if self._watch is not None:
                self._watch(described)

    def forget_posted(self) -> None:
        """Lets the state be published again even where it has not changed."""
        self._published = None

    def describe(
        self,
        state: State,
        *,
        refusals: Refusals,
        received_bytes: int,
        broadcast_bytes: int,
        epsilon: float | None = None,
    ) -> AggregatorState:
        """Returns what the aggregator says about itself.

        Args:
            state: the round machine's.
            refusals: what was not taken as it came.
            received_bytes: payload bytes of updates that came in.
            broadcast_bytes: payload bytes of the global adapter that went out.
            epsilon: of devices, over all sums so far; None where no noise is added.
        """
        best = state.best
        return AggregatorState(
            status="finished" if state.phase == "finished" else "online",
            instance=self._instance,
            run=self._run,
            phase=state.phase,
            round=state.round,
            rounds=self._options.rounds,
            joined=len({*state.candidates, *state.participants}),
            accepted=len(state.participants),
            updates=len(state.delivered),
            quorum=self._options.selection.quorum,
            **refusals.totals,
            refusals=refusals.latest,
            given_up=refusals.given_up,
            gave_up=refusals.gave_up[:4096],
            best_round=best[0] if best else None,
            best_loss=best[1] if best else None,
            last_loss=state.losses[-1][1] if state.losses else None,
            received_bytes=received_bytes,
            broadcast_bytes=broadcast_bytes,
            epsilon=epsilon,
            delta=None if epsilon is None else self._options.client_privacy.delta,
            note=state.finished_reason or why_waiting(state, self._options.selection.quorum),
        )
