"""The global adapters of a run, on disk: the first one made, a sum for each round that closes, the last ones exported.

Whatever goes on from an adapter, or into a sum, is checked against the hash that the store has of it. What takes long
runs in a thread; the store is read in the loop's.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterable

from edgefed.aggregation.exchange import Exchange, MergedState
from edgefed.coordinator import events
from edgefed.coordinator.answers import MergedRound
from edgefed.coordinator.divergence import last_good
from edgefed.coordinator.history import extend_history, write_history
from edgefed.coordinator.merging import RoundTraffic, give_up_round, merge_round, tidy, unmerged_record
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.round_records import write_record
from edgefed.coordinator.round_state import State
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.soundness import check_account, check_files, check_states, check_updates
from edgefed.coordinator.store import Store
from edgefed.errors import AdapterError

__all__ = ["GlobalAdapters"]

_log = logging.getLogger(__name__)


class GlobalAdapters:
    """Makes and keeps them.

    Args:
        options: what `federation.toml` says.
        store: of the run.
        directory: of the run.
        exchange: of the federation's method.
    """

    def __init__(self, options: FederationOptions, store: Store, directory: RunDirectory, exchange: Exchange) -> None:
        self._options = options
        self._store = store
        self._directory = directory
        self._exchange = exchange

    async def begin(self, state: State) -> None:
        """Looks at all that was kept, and makes the adapter before the first round, once.

        Raises:
            StoreError: something is not what was written.
            AdapterError: the base model cannot have an adapter.
        """
        self._directory.remove_leftovers()
        check_account(self._store)
        check_files(self._store, self._directory, state)
        path = self._directory.state(0)
        if self._store.start is None:
            shutil.rmtree(path, ignore_errors=True)  # of a first start that was cut short
        elif not path.exists():
            return  # a later adapter has taken its place in all that is to come
        made = await asyncio.to_thread(self._exchange.begin, path)
        if self._store.start is None:
            start = unmerged_record(self._directory, 0, made)
            write_record(self._directory, start)
            self._store.keep_start(start)

    def after(self, round_: int) -> MergedState:
        """Returns the adapter that a round ended with; 0 for the first."""
        return self._exchange.load(self._directory.state(round_))

    async def merge(self, action: events.Merge, traffic: RoundTraffic) -> MergedRound | events.MergeFailed:
        """Makes a round's sum, and returns its record, or that it cannot be made.

        Raises:
            StoreError: what it is made of is not what was written, or the disk fails.
        """
        about = {"round": action.round, "updates": len(action.updates)}
        _log.info("round %(round)d: merging %(updates)d updates", about)
        starts = {action.round - 1, *(update.round - 1 for update in action.updates)}
        digests = self._digests(starts)
        await asyncio.to_thread(check_updates, self._directory, action.updates)
        await asyncio.to_thread(check_states, self._directory, digests)
        try:
            record, _ = await asyncio.to_thread(
                merge_round,
                self._exchange,
                self._directory,
                self._options.selection,
                action.round,
                action.updates,
                traffic,
                max_examples=self._options.robustness.max_examples,
                equal_weights=bool(self._options.client_privacy.noise_multiplier),
            )
        except AdapterError as error:  # each update is fit to be summed, and all is whole: it is the sum itself
            return events.MergeFailed(action.round, f"the sum cannot be made: {error}")
        return record

    async def give_up(self, action: events.GiveUp, traffic: RoundTraffic) -> MergedRound:
        """Makes an earlier adapter that of a round that is given up, and returns the round's record.

        Raises:
            StoreError: that adapter is not what was written, or the disk fails.
        """
        about = {"round": action.round, "of": action.of, "reason": action.reason}
        _log.error("round %(round)d is given up, back to the adapter after round %(of)d: %(reason)s", about)
        await asyncio.to_thread(check_states, self._directory, self._digests([action.of]))
        record, _ = await asyncio.to_thread(give_up_round, self._exchange, self._directory, action, traffic)
        return record

    def settle(self, state: State) -> None:
        """After a round is in the store: its line of the history, and what nobody needs any more is removed."""
        extend_history(self._directory.history, self._store, state)
        tidy(self._directory, self._options.selection, state, self._store.last_round)

    def export(self, state: State) -> None:
        """At the end: the history, the last adapter, and the best.

        Raises:
            StoreError: one of them is damaged.
        """
        write_history(self._directory.history, self._store, state)
        last = self._store.last_round
        if state.failed:  # the last adapter is the one that has diverged, or is about to
            good = last_good(state.typical)
            last = 0 if good is None else good[0]
        best = 0 if state.best is None else state.best[0]
        for number, output in ((last, self._directory.adapter), (best, self._directory.best_adapter)):
            if number:
                check_states(self._directory, self._digests([number]))
                self._exchange.export(self._directory.state(number), output)

    def _digests(self, rounds: Iterable[int]) -> dict[int, str]:
        return {round_: self._store.state_digest(round_) for round_ in rounds}
