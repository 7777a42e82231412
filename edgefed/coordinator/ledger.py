"""The round machine with a memory: every event that changes something is in the journal before anybody acts on it."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgefed.coordinator import events, rounds
from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.round_state import Rules, State
from edgefed.coordinator.store import Store
from edgefed.errors import ConfigError

__all__ = ["Ledger"]

_RESULTS = (events.UpdateReceived, events.Merged, events.GivenUp)
"""What has changed the state when it was journalled, and still has to. A final evaluation need not: where more rounds
are wanted after it, its round is one of training."""


class Ledger:
    """The state of a federation, replayed from its store when opened.

    Its clock counts the seconds during which an aggregator was at work: it stands still while none is, so a
    deadline does not pass behind a dead aggregator's back, and a wall clock that jumps does no harm.

    Raises:
        StoreError: the journal is damaged.
        ConfigError: by these rules something that is done and known would not count.
    """

    def __init__(self, store: Store, rules: Rules, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._rules = rules
        self._monotonic_s = monotonic_s
        self.state = State()
        last_s = 0.0
        for event, now_s in store.journal():
            before, (self.state, _) = self.state, rounds.step(self.state, event, now_s, rules)
            if self.state == before and isinstance(event, _RESULTS):
                raise _overtaken(event, before, rules)
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


def _overtaken(event: events.Event, state: State, rules: Rules) -> ConfigError:
    """Returns the error for rules by which the federation would have been elsewhere when this happened."""
    if isinstance(event, events.UpdateReceived):
        what = f"the update of device {event.update.device} for round {event.update.round}"
    else:
        assert isinstance(event, events.Merged | events.GivenUp)
        what = f"the adapter after round {event.round}"
    target = "" if rules.target_loss is None else f" and target_loss = {rules.target_loss:g}"
    where = f"after {state.finished_reason}" if state.phase == "finished" else f"in round {state.round} ({state.kind})"
    return ConfigError(
        f"rounds = {rules.rounds}{target} came too late for this run: by them it would have been {where}, and {what} "
        "would count for nothing; take the change back, or begin another federation in a directory of its own"
    )
