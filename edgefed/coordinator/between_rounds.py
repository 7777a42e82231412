"""What is done between two rounds: a sum, or an earlier adapter once more; and what users load in the end.

Whatever it rests on is looked at first: a sum over damaged files would pass the damage on.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

from edgefed.aggregation.exchange import Exchange
from edgefed.coordinator.answers import MergedRound
from edgefed.coordinator.divergence import last_good
from edgefed.coordinator.events import GiveUp, Merge, MergeFailed
from edgefed.coordinator.merging import RoundTraffic, first_record, give_up_round, merge_round
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.round_records import write_record
from edgefed.coordinator.round_state import State
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.soundness import check_account, check_files, check_states, check_updates
from edgefed.coordinator.store import Store
from edgefed.errors import AdapterError

__all__ = ["BetweenRounds", "WorkDone"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkDone:
    """What came of the work: the record of a round that is over, or the event that says why it is not."""

    outcome: MergedRound | MergeFailed


class BetweenRounds:
    """Does the work of one federation, one piece at a time.

    Args:
        options: what `federation.toml` says.
        exchange: of this federation's method.
        directory, store: of this run.
    """

    def __init__(self, options: FederationOptions, exchange: Exchange, directory: RunDirectory, store: Store) -> None:
        self._options = options
        self._exchange = exchange
        self._directory = directory
        self._store = store

    async def begin(self, state: State) -> None:
        """Looks at all that was kept, and makes the adapter before the first round, once.

        Raises:
            StoreError: something is not what was written.
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
            start = first_record(self._directory, made)
            write_record(self._directory, start)
            self._store.keep_start(start)

    async def merge(self, action: Merge, traffic: RoundTraffic) -> WorkDone:
        """Makes a round's sum.

        Raises:
            StoreError: what it is made of is not what was written, or the disk fails.
        """
        _log.info("round %d: merging %d updates", action.round, len(action.updates))
        starts = {action.round - 1, *(update.round - 1 for update in action.updates)}
        await asyncio.to_thread(check_updates, self._directory, action.updates)
        await asyncio.to_thread(check_states, self._directory, self._digests(starts))
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
            return WorkDone(MergeFailed(action.round, f"the sum cannot be made: {error}"))
        return WorkDone(record)

    async def give_up(self, action: GiveUp, traffic: RoundTraffic) -> WorkDone:
        """Makes an earlier adapter that of a round.

        Raises:
            StoreError: that adapter is not what was written, or the disk fails.
        """
        _log.error(
            "round %d is given up, back to the adapter after round %d: %s", action.round, action.of, action.reason
        )
        await asyncio.to_thread(check_states, self._directory, self._digests([action.of]))
        record, _ = await asyncio.to_thread(give_up_round, self._exchange, self._directory, action, traffic)
        return WorkDone(record)

    def export(self, state: State) -> None:
        """Writes the adapters that users load: the last one, and the best one where devices have evaluated them.

        Raises:
            StoreError: one of them is not what was written.
            OSError: the disk refuses it.
        """
        last = self._store.last_round
        if state.failed:  # the last adapter is the one that has diverged, or is about to
            good = last_good(state.typical)
            last = 0 if good is None else good[0]
        best = 0 if state.best is None else state.best[0]
        for number, output in ((last, self._directory.adapter), (best, self._directory.best_adapter)):
            if number:
                check_states(self._directory, self._digests([number]))
                self._exchange.export(self._directory.state(number), output)

    def _digests(self, numbers: Iterable[int]) -> dict[int, str]:
        return {number: self._store.state_digest(number) for number in numbers}
