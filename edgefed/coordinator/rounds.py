"""The round machine: (state, event, now) → (state, actions). No I/O, no clock; the same events give the same state.

::

    gathering ──enough joined──▶ training ──closed──▶ merging ──merged──▶ gathering (next round) … ▶ finished

A round gathers volunteers, selects from them, and closes when every selected device has delivered or gone, when the
wanted number of updates is in, or at the deadline; never below the quorum. Below it, the deadline is set anew and
everybody is called again; the round then closes by the same rule. A round that starts from an adapter that has
diverged is given up: it is `merging` while an earlier adapter is made its result. Publishing a merged adapter and
opening the next round are one event, so there is no moment in which a crash could lose or repeat a merge.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal

from edgefed.coordinator.divergence import last_good, most_have_diverged, typical_loss, why_diverged
from edgefed.coordinator.events import (
    Accept,
    Action,
    Announce,
    Begin,
    Event,
    Finish,
    GivenUp,
    GiveUp,
    Merge,
    Merged,
    MergeFailed,
    Recovered,
    Refuse,
    Stop,
)
from edgefed.coordinator.participants import remaining_s, take_in
from edgefed.coordinator.round_state import Rules, State

__all__ = ["next_deadline", "recover", "step"]


def step(state: State, event: Event, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    """Returns the state after `event`, and what to do. Events that change nothing return the same state object.

    Args:
        state: the state so far.
        event: what happened.
        now_s: seconds of a clock that never runs backwards over the life of the federation.
        rules: the federation's.
    """
    if state.phase == "finished":
        return state, ()
    if isinstance(event, Begin):
        return _open(state, 1, "train", now_s) if state.round == 0 else (state, ())
    if isinstance(event, Stop):
        return _finish(state, event.reason)
    if isinstance(event, Merged | MergeFailed | GivenUp | Recovered):
        return _after_work(state, event, now_s, rules)
    state, actions = take_in(state, event, now_s, rules)
    state, more = _advance(state, now_s, rules)
    return state, (*actions, *more)


def recover(state: State) -> tuple[Action, ...]:
    """Returns what a restarted service has to do before anything else. Every action is safe to repeat."""
    if state.phase == "finished":
        return (Finish(state.finished_reason, state.failed),)
    if state.giving_up is not None:
        return (state.giving_up,)
    if state.phase == "merging":
        return (Merge(state.round, (*state.carried, *state.updates)),)
    return (Announce(),) if state.round else ()


def next_deadline(state: State, rules: Rules) -> float | None:
    """Returns the time at which a `Tick` may change something, or None."""
    if state.phase == "gathering" and state.round:
        window_ends_s = state.opened_at_s + rules.selection.gather_s
        if len(state.candidates) >= _needed(state, rules):
            return window_ends_s
        return window_ends_s + rules.selection.deadline_s if state.kind == "evaluate" else None
    if state.phase == "training":
        return state.training_since_s + rules.selection.deadline_s
    return None


# --- transitions ------------------------------------------------------------------------------------------------------


def _open(
    state: State, round_: int, kind: Literal["train", "evaluate"], now_s: float
) -> tuple[State, tuple[Action, ...]]:
    opened = State(
        round=round_,
        kind=kind,
        opened_at_s=now_s,
        carried=state.carried,
        owed=state.owed,
        losses=state.losses,
        held=state.held,
        typical=state.typical,
        given_up=state.given_up,
        copied=state.copied,
    )
    return opened, (Announce(),)


def _finish(state: State, reason: str, *, failed: bool = False) -> tuple[State, tuple[Action, ...]]:
    over = replace(
        state, phase="finished", outstanding=(), overdue=(), giving_up=None, finished_reason=reason, failed=failed
    )
    return over, (Finish(reason, failed),)


def _advance(state: State, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    if state.phase == "gathering" and state.round:
        return _select(state, now_s, rules)
    if state.phase == "training":
        return _close_or_wait(state, now_s, rules)
    return state, ()


def _select(state: State, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    selection = rules.selection
    joined = len(state.candidates)
    everybody_is_here = bool(selection.expected_devices) and joined >= selection.expected_devices
    window_ends_s = state.opened_at_s + selection.gather_s
    window_is_over = now_s >= window_ends_s and joined >= _needed(state, rules)
    if not (everybody_is_here or window_is_over):
        nobody_looks = state.kind == "evaluate" and not joined and now_s >= window_ends_s + selection.deadline_s
        return _close(state, rules) if nobody_looks else (state, ())
    chosen = state.candidates
    places = rules.places
    if places is not None and joined > places:
        chosen = tuple(sorted(random.Random(f"{rules.seed}/{state.round}").sample(chosen, places)))
    selected = replace(
        state,
        phase="training",
        training_since_s=now_s,
        candidates=(),
        participants=chosen,
        outstanding=chosen,
    )
    left_s = remaining_s(selected, now_s, rules)
    others = [device for device in state.candidates if device not in chosen]
    actions = [Accept(device, left_s) for device in chosen]
    return selected, (*actions, *(Refuse(device, "not selected for this round") for device in others))


def _close_or_wait(state: State, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    selection = rules.selection
    answers = len(state.delivered)
    diverged = most_have_diverged(len(state.diverged), len(state.participants))
    if diverged and state.kind == "train":
        return _give_up(state, rules, diverged)
    overdue = now_s >= state.training_since_s + selection.deadline_s
    if answers >= selection.quorum:
        enough = bool(selection.participants) and answers >= selection.participants
        if enough or overdue or not state.outstanding:
            return _close(state, rules)
    elif overdue:
        if state.kind == "evaluate":
            return _close(state, rules)
        # Below quorum: reopen, and call everybody again. Who is overdue is waited for, but may be replaced.
        return replace(state, training_since_s=now_s, overdue=state.outstanding), (Announce(),)
    return state, ()


def _close(state: State, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    tokens = sum(n for _, _, n in state.evaluations)
    if tokens:
        loss = sum(value * n for _, value, n in sorted(state.evaluations)) / tokens
        state = replace(state, losses=(*state.losses, (state.round - 1, loss)))
    if state.kind == "evaluate":
        return _finish(state, f"all {rules.rounds} rounds are done")
    latest = typical_loss(state.evaluations)
    if worse := why_diverged(state.typical, latest, rules.divergence):
        return _give_up(state, rules, worse)
    if latest is not None:
        anew = state.copied != state.round - 1
        state = replace(
            state, typical=(*state.typical, (state.round - 1, latest)), given_up=0 if anew else state.given_up
        )
    state = replace(state, phase="merging", outstanding=(), overdue=(), owed=_owed(state, rules))
    return state, (Merge(state.round, (*state.carried, *state.updates)),)


def _give_up(state: State, rules: Rules, reason: str, *, sum_failed: bool = False) -> tuple[State, tuple[Action, ...]]:
    """Goes back to the best adapter, or to the one that the round started from where none was evaluated."""
    most = rules.divergence.in_a_row if rules.divergence.action == "roll-back" else 0
    if state.given_up >= most:
        again = f"; {state.given_up} rounds before it were given up for that" if state.given_up else ""
        return _finish(state, f"round {state.round} failed: {reason}{again}", failed=True)
    best = last_good(state.typical)
    of = state.round - 1 if best is None else best[0]
    # What was late for earlier rounds has done nothing wrong, and waits for the next sum if there is one. Where the sum
    # itself has failed, nobody knows of which update; one that stayed would spoil each sum to come.
    all_of_it = sum_failed or state.round == rules.rounds
    unused = (*state.carried, *state.updates) if all_of_it else state.updates
    doing = GiveUp(state.round, of, reason, unused)
    return replace(
        state,
        phase="merging",
        outstanding=(),
        overdue=(),
        owed=frozenset(pair for pair in _owed(state, rules) if pair[0] < state.round),
        giving_up=doing,
        given_up=state.given_up + 1,
    ), (doing,)


def _after_work(
    state: State, event: Merged | MergeFailed | GivenUp | Recovered, now_s: float, rules: Rules
) -> tuple[State, tuple[Action, ...]]:
    """Goes on after what the service did in a closed round."""
    if isinstance(event, Recovered):
        recovered = State(
            round=event.round, losses=event.losses, typical=event.typical, copied=event.round, held=state.held
        )
        return _go_on(recovered, now_s, rules)
    if (
        state.phase != "merging"
        or event.round != state.round
        or (state.giving_up is None) is isinstance(event, GivenUp)
    ):
        return state, ()
    if isinstance(event, MergeFailed):
        return _give_up(state, rules, event.reason, sum_failed=True)
    if state.giving_up is not None:
        earlier = tuple(one for one in (*state.carried, *state.waiting) if one not in state.giving_up.updates)
        copied = replace(state, carried=earlier, waiting=(), copied=state.round)
        return _go_on(copied, now_s, rules)
    assert isinstance(event, Merged)
    given_up = state.given_up if state.typical else 0  # where nobody evaluates, a sum that can be made is good news
    merged = replace(state, carried=state.waiting, waiting=(), given_up=given_up)
    if _target_is_reached(state, rules):
        return _finish(merged, f"the target loss of {rules.target_loss:g} was reached")
    return _go_on(merged, now_s, rules, last_because=event.last_because)


def _go_on(state: State, now_s: float, rules: Rules, *, last_because: str = "") -> tuple[State, tuple[Action, ...]]:
    if state.round < rules.rounds:
        if last_because:
            return _finish(state, last_because)
        return _open(state, state.round + 1, "train", now_s)
    if rules.final_evaluation:
        return _open(state, state.round + 1, "evaluate", now_s)
    return _finish(state, f"all {rules.rounds} rounds are done")


# --- small helpers ----------------------------------------------------------------------------------------------------


def _owed(state: State, rules: Rules) -> frozenset[tuple[int, str]]:
    """Returns whose updates the next sum would take, when this one is made without them."""
    if state.round == rules.rounds or _target_is_reached(state, rules):
        return frozenset()
    missing = {(state.round, device) for device in state.participants if device not in state.delivered}
    oldest = state.round + 1 - rules.selection.max_staleness
    return frozenset(pair for pair in state.owed | missing if pair[0] >= oldest)


def _target_is_reached(state: State, rules: Rules) -> bool:
    return rules.target_loss is not None and any(loss <= rules.target_loss for _, loss in state.losses)


def _needed(state: State, rules: Rules) -> int:
    """How many must have joined when gathering ends: a last look that few can give must not hold up the end."""
    return rules.selection.quorum if state.kind == "train" else 1
