"""The round machine: (state, event, now) → (state, actions). No I/O, no clock; the same events give the same state.

::

    gathering ──enough joined──▶ training ──closed──▶ merging ──merged──▶ gathering (next round) … ▶ finished

A round gathers volunteers, selects from them, and closes when every selected device has delivered or gone, when the
wanted number of updates is in, or at the deadline; never below the quorum. Below it, the deadline is set anew and
everybody is called again; the round then closes by the same rule. Publishing a merged adapter and opening the
next round are one event, so there is no moment in which a crash could lose or repeat a merge.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from edgefed.coordinator.events import (
    Accept,
    Action,
    Announce,
    Begin,
    DeviceJoined,
    DeviceLeft,
    DeviceReturned,
    EvaluationReceived,
    Event,
    Finish,
    Merge,
    Merged,
    Refuse,
    RosterRead,
    Stop,
    UpdateReceived,
)
from edgefed.coordinator.holding import obey, refusal
from edgefed.coordinator.offers import judge_offer
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
    if isinstance(event, Merged):
        return _after_merge(state, event, now_s, rules)
    if isinstance(event, DeviceJoined):
        state, actions = _join(state, event.device, now_s, rules)
    elif isinstance(event, RosterRead):
        state, actions = obey(state, event)
    else:
        state, actions = _note(state, event, rules), ()
    state, more = _advance(state, now_s, rules)
    return state, (*actions, *more)


def recover(state: State) -> tuple[Action, ...]:
    """Returns what a restarted service has to do before anything else. Every action is safe to repeat."""
    if state.phase == "finished":
        return (Finish(state.finished_reason),)
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
    )
    return opened, (Announce(),)


def _finish(state: State, reason: str) -> tuple[State, tuple[Action, ...]]:
    return replace(state, phase="finished", outstanding=(), overdue=(), finished_reason=reason), (Finish(reason),)


def _note(state: State, event: Event, rules: Rules) -> State:
    if isinstance(event, DeviceLeft):
        return _leave(state, event.device)
    if isinstance(event, DeviceReturned):
        return _return(state, event.device)
    if isinstance(event, UpdateReceived):
        return _receive(state, event, rules)
    if isinstance(event, EvaluationReceived):
        return _evaluate(state, event)
    return state


def _join(state: State, device: str, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    if (refused := refusal(state, device)) is not None:
        return state, (refused,)
    if state.phase == "gathering":
        known = device in state.candidates
        return state if known else replace(state, candidates=_with(state.candidates, device)), ()
    if state.phase != "training":
        return state, (Refuse(device, "the round is closed: its updates are being merged"),)
    if device in state.delivered:
        return state, (Refuse(device, "this device's answer to the round is already in"),)
    places = rules.places
    if device not in state.participants and places is not None and _taken(state) >= places:
        return state, (Refuse(device, f"the round has its {places} participants"),)
    if device not in state.outstanding or device in state.overdue:  # else it asks again because the answer got lost
        state = replace(
            state,
            participants=_with(state.participants, device),
            outstanding=_with(state.outstanding, device),
            overdue=_without(state.overdue, device),
        )
    return state, (Accept(device, _remaining_s(state, now_s, rules)),)


def _leave(state: State, device: str) -> State:
    if device not in state.candidates and device not in state.outstanding:
        return state
    return _not_awaited(replace(state, candidates=_without(state.candidates, device)), device)


def _return(state: State, device: str) -> State:
    takes_part = state.phase == "training" and device in state.participants and device not in state.delivered
    if not takes_part or (device in state.outstanding and device not in state.overdue):
        return state
    return replace(state, outstanding=_with(state.outstanding, device), overdue=_without(state.overdue, device))


def _receive(state: State, event: UpdateReceived, rules: Rules) -> State:
    update = event.update
    verdict = judge_offer(state, rules, update.device, update.round)
    if verdict == "late":
        state = replace(state, owed=state.owed - {(update.round, update.device)})
        if state.phase == "merging":
            return replace(state, waiting=(*state.waiting, update))
        return replace(state, carried=(*state.carried, update))
    if verdict != "wanted":
        return state
    state = _not_awaited(replace(state, updates=(*state.updates, update)), update.device)
    if event.loss is None or not event.target_tokens:
        return state
    return replace(state, evaluations=(*state.evaluations, (update.device, event.loss, event.target_tokens)))


def _evaluate(state: State, event: EvaluationReceived) -> State:
    expected = state.kind == "evaluate" and state.phase == "training" and event.round == state.round
    if not expected or event.device not in state.participants or event.device in state.delivered:
        return state
    evaluations = (*state.evaluations, (event.device, event.loss, event.target_tokens))
    return _not_awaited(replace(state, evaluations=evaluations), event.device)


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
    remaining_s = _remaining_s(selected, now_s, rules)
    others = [device for device in state.candidates if device not in chosen]
    actions = [Accept(device, remaining_s) for device in chosen]
    return selected, (*actions, *(Refuse(device, "not selected for this round") for device in others))


def _close_or_wait(state: State, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    selection = rules.selection
    answers = len(state.delivered)
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
    state = replace(state, phase="merging", outstanding=(), overdue=(), owed=_owed(state, rules))
    return state, (Merge(state.round, (*state.carried, *state.updates)),)


def _after_merge(state: State, event: Merged, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    if state.phase != "merging" or event.round != state.round:
        return state, ()
    merged = replace(state, carried=state.waiting, waiting=())
    if _target_is_reached(state, rules):
        return _finish(merged, f"the target loss of {rules.target_loss:g} was reached")
    if state.round < rules.rounds:
        if event.last_because:
            return _finish(merged, event.last_because)
        return _open(merged, state.round + 1, "train", now_s)
    if rules.final_evaluation:
        return _open(merged, state.round + 1, "evaluate", now_s)
    return _finish(merged, f"all {rules.rounds} rounds are done")


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


def _taken(state: State) -> int:
    return len(state.outstanding) - len(state.overdue) + len(state.delivered)


def _remaining_s(state: State, now_s: float, rules: Rules) -> float:
    return max(0.0, state.training_since_s + rules.selection.deadline_s - now_s)


def _not_awaited(state: State, device: str) -> State:
    return replace(state, outstanding=_without(state.outstanding, device), overdue=_without(state.overdue, device))


def _with(devices: Iterable[str], device: str) -> tuple[str, ...]:
    return tuple(sorted({*devices, device}))


def _without(devices: Iterable[str], device: str) -> tuple[str, ...]:
    return tuple(other for other in devices if other != device)
