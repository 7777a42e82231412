"""One merge: which updates with which weight go in, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgefed.aggregation.exchange import Delivered, Exchange, Intervention, MergedState
from edgefed.coordinator.answers import MergedRound
from edgefed.coordinator.digests import directory_digest
from edgefed.coordinator.divergence import last_good
from edgefed.coordinator.events import GiveUp, Update
from edgefed.coordinator.round_state import State
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.selection import Selection

__all__ = ["RoundTraffic", "give_up_round", "merge_round", "tidy", "unmerged_record"]


class RoundTraffic:
    """Payload bytes and seconds since a round was opened.

    Args:
        received_bytes, sent_bytes: return the running totals.
    """

    def __init__(self, received_bytes: Callable[[], int], sent_bytes: Callable[[], int]) -> None:
        self._totals = (received_bytes, sent_bytes)
        self._opened_s = time.monotonic()
        self._received_bytes, self._sent_bytes = received_bytes(), sent_bytes()

    @property
    def lasted_s(self) -> float:
        """Seconds since then, whatever became of the clock on the wall."""
        return time.monotonic() - self._opened_s

    @property
    def received_bytes(self) -> int:
        """Bytes of updates that came in."""
        return self._totals[0]() - self._received_bytes

    @property
    def broadcast_bytes(self) -> int:
        """Bytes of the global adapter that went out, repairs included."""
        return self._totals[1]() - self._sent_bytes


def merge_round(
    exchange: Exchange,
    directory: RunDirectory,
    selection: Selection,
    round_: int,
    updates: Sequence[Update],
    traffic: RoundTraffic,
    *,
    max_examples: int | None = None,
    equal_weights: bool = False,
) -> tuple[MergedRound, MergedState]:
    """Returns the record of the merge and the new state, which is durable. Slow: call it in a thread.

    An update that is k rounds old counts with the weight that `Selection.late_weight` gives it, for its examples or
    `max_examples`, whichever is less, and the exchange may hold it to less; or all count the same.
    """
    started_s = time.monotonic()

    def weight(update: Update) -> float:
        examples = update.examples if max_examples is None else min(update.examples, max_examples)
        return 1.0 if equal_weights else selection.late_weight(examples, round_ - update.round)

    chosen = exchange.choose([_delivered(directory, update, weight(update)) for update in updates])
    merged = exchange.merge(directory.state(round_ - 1), chosen.delivered, round_, directory.state(round_))
    total = sum(one.weight for one in chosen.delivered)
    weights: dict[str, float] = {}
    for one in chosen.delivered:
        weights[one.device] = weights.get(one.device, 0.0) + one.weight / total
    merged_unix_s = time.time()
    record = MergedRound(
        round=round_,
        manifest=merged.manifest,
        devices=weights,
        norm=merged.norm,
        merge_s=time.monotonic() - started_s,
        broadcast_bytes=traffic.broadcast_bytes,
        received_bytes=traffic.received_bytes,
        opened_unix_s=merged_unix_s - traffic.lasted_s,
        merged_unix_s=merged_unix_s,
        interventions=chosen.interventions,
        digest=directory_digest(directory.state(round_)),
    )
    return record, merged


def give_up_round(
    exchange: Exchange, directory: RunDirectory, doing: GiveUp, traffic: RoundTraffic
) -> tuple[MergedRound, MergedState]:
    """Makes an earlier adapter that of a round that is given up. Slow: call it in a thread.

    Returns:
        The record, in which every update of the round stands as excluded; and the state, which is durable.
    """
    started_s = time.monotonic()
    directory.copy_state(doing.of, doing.round)
    state = exchange.load(directory.state(doing.round))
    reason = f"round {doing.round} was given up: {doing.reason}"
    merged_unix_s = time.time()
    record = MergedRound(
        round=doing.round,
        manifest=state.manifest,
        devices={},
        norm=state.norm,
        merge_s=time.monotonic() - started_s,
        broadcast_bytes=traffic.broadcast_bytes,
        received_bytes=traffic.received_bytes,
        opened_unix_s=merged_unix_s - traffic.lasted_s,
        merged_unix_s=merged_unix_s,
        interventions=tuple(
            Intervention(device=update.device, round=update.round, what="excluded", reason=reason)
            for update in doing.updates
        ),
        copied=doing.of,
        given_up_because=doing.reason,
        digest=directory_digest(directory.state(doing.round)),
    )
    return record, state


def unmerged_record(directory: RunDirectory, round_: int, adapter: MergedState | MergedRound) -> MergedRound:
    """Returns the record of an adapter that is in the run's directory without a round of its own.

    Args:
        directory: the run's.
        round_: the number that the adapter has there.
        adapter: the one before the first round, or a round's that a damaged run goes on from.
    """
    now_unix_s = time.time()
    return MergedRound(
        round=round_,
        manifest=adapter.manifest,
        devices={},
        norm=adapter.norm,
        merge_s=0.0,
        broadcast_bytes=0,
        received_bytes=0,
        opened_unix_s=now_unix_s,
        merged_unix_s=now_unix_s,
        digest=directory_digest(directory.state(round_)),
    )


def tidy(directory: RunDirectory, selection: Selection, state: State, merged: int) -> None:
    """Removes what no later merge, export or late update can need, once `merged` rounds are merged."""
    oldest = merged - (selection.max_staleness if selection.late == "discount" else 0)
    waiting = (*state.updates, *state.carried, *state.waiting)
    keep = {0, merged, *range(max(0, oldest), merged + 1)}
    keep |= {best[0] for best in (state.best, last_good(state.typical)) if best is not None}
    keep |= {update.round - 1 for update in waiting}  # with each round that is given up, they wait for longer
    directory.drop_states(keep)
    directory.drop_updates(directory.update(u.device, u.round, u.sha256) for u in waiting)


def _delivered(directory: RunDirectory, update: Update, weight: float) -> Delivered:
    return Delivered(
        device=update.device,
        round=update.round,
        weight=weight,
        rank=update.rank,
        held_rank=update.held_rank,
        update=directory.update(update.device, update.round, update.sha256),
        start=directory.state(update.round - 1),
    )
