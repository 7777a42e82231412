"""The round machine with a memory: every event that changes something is in the journal before anybody acts on it."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgefed.coordinator import events, rounds
from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.round_state import Rules, State
from edgefed.coordinator.store import Store

__all__ = ["Ledger"]


class Ledger:
    """The state of a federation, replayed from its store when opened.

    Its clock counts the seconds during which an aggregator was at work: it stands still while none is, so a
    deadline does not pass behind a dead aggregator's back, and a wall clock that jumps does no harm.
    """

    def __init__(self, store: Store, rules: Rules, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._rules = rules
        self._monotonic_s = monotonic_s
        self.state = State()
        last_s = 0.0
        for event, now_s in store.journal():
            self.state, _ = rounds.step(self.state, event, now_s, rules)
            last_s = now_s
        self._offset_s = last_s - monotonic_s()

    def now_s(self) -> float:
        """Seconds of work so far."""
        return self._monotonic_s() + self._offset_s

    def apply(self, event: events.Event, *, answer: Answer | None = None) -> tuple[events.Action, ...]:
        """Takes an event and returns what to do about it. When this returns, the event is durable.

        Args:
            event: what happened.
            answer: kept together with the event.

        Raises:
            StoreError: it could not be kept; the state is as before.
        """
        now_s = self.now_s()
        state, actions = rounds.step(self.state, event, now_s, self._rules)
        if answer is not None or state != self.state:
            self._store.append(event, now_s, answer=answer)
        self.state = state
        return actions

    def apply_merged(self, merged: MergedRound, *, last_because: str = "") -> tuple[events.Action, ...]:
        """Takes the end of a merge, or of giving a round up, keeps its record, and returns what to do next.

        Args:
            merged: the record.
            last_because: why no other merge may follow; "" where one may.
        """
        now_s = self.now_s()
        given_up = merged.copied is not None
        event = events.GivenUp(merged.round) if given_up else events.Merged(merged.round, last_because)
        state, actions = rounds.step(self.state, event, now_s, self._rules)
        self._store.add_merged(event, now_s, merged)
        self.state = state
        return actions

    def wait_s(self, longest_s: float) -> float:
        """Returns how long nothing will happen by itself, at most `longest_s`."""
        deadline_s = rounds.next_deadline(self.state, self._rules)
        if deadline_s is None:
            return longest_s
        return min(longest_s, max(0.0, deadline_s - self.now_s()))
