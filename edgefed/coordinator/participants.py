"""What a single device does to a round, or the operator with it: part of the round machine, and pure.

It joins, leaves, comes back, delivers; the operator pauses it, lets it run dry or removes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from edgefed.coordinator.events import (
    Accept,
    Action,
    DeviceJoined,
    DeviceLeft,
    DeviceReturned,
    EvaluationReceived,
    Event,
    Refuse,
    RosterRead,
    UpdateReceived,
)
from edgefed.coordinator.holding import obey, refusal
from edgefed.coordinator.offers import judge_offer
from edgefed.coordinator.round_state import Rules, State

__all__ = ["remaining_s", "take_in"]


def take_in(state: State, event: Event, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    """Returns the state after what a device or the operator did, with the answers to it; any other event is nothing."""
    if isinstance(event, DeviceJoined):
        return _join(state, event.device, now_s, rules)
    if isinstance(event, RosterRead):
        return obey(state, event)
    if isinstance(event, DeviceLeft):
        state = _leave(state, event.device, diverged=event.diverged)
    elif isinstance(event, DeviceReturned):
        state = _come_back(state, event.device)
    elif isinstance(event, UpdateReceived):
        state = _receive(state, event, rules)
    elif isinstance(event, EvaluationReceived):
        state = _evaluate(state, event)
    return state, ()


def _join(state: State, device: str, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    """Returns the state with a device that asked to take part, and its answer where it gets one now."""
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
    return state, (Accept(device, remaining_s(state, now_s, rules)),)


def _leave(state: State, device: str, *, diverged: bool) -> State:
    """Returns the state without a device that declined, gave up or was lost; its word that it diverged is kept."""
    if device not in state.candidates and device not in state.outstanding:
        return state
    if diverged and device in state.outstanding:
        state = replace(state, diverged=_with(state.diverged, device))
    return _not_awaited(replace(state, candidates=_without(state.candidates, device)), device)


def _come_back(state: State, device: str) -> State:
    """Returns the state in which a participant that was lost is waited for again."""
    takes_part = state.phase == "training" and device in state.participants and device not in state.delivered
    if not takes_part or (device in state.outstanding and device not in state.overdue):
        return state
    return replace(state, outstanding=_with(state.outstanding, device), overdue=_without(state.overdue, device))


def _receive(state: State, event: UpdateReceived, rules: Rules) -> State:
    """Returns the state with an update that is durable: in the open round, or late."""
    update = event.update
    verdict = judge_offer(state, rules, update.device, update.round)
    if verdict == "late":
        state = replace(state, owed=state.owed - {(update.round, update.device)})
        if state.phase == "merging":
            return replace(state, waiting=(*state.waiting, update))
        return replace(state, carried=(*state.carried, update))
    if verdict != "wanted":
        return state
    diverged = _without(state.diverged, update.device)  # it has found a way
    state = _not_awaited(replace(state, updates=(*state.updates, update), diverged=diverged), update.device)
    if event.loss is None or not event.target_tokens:
        return state
    return replace(state, evaluations=(*state.evaluations, (update.device, event.loss, event.target_tokens)))


def _evaluate(state: State, event: EvaluationReceived) -> State:
    """Returns the state with a device's evaluation of the final adapter."""
    expected = state.kind == "evaluate" and state.phase == "training" and event.round == state.round
    if not expected or event.device not in state.participants or event.device in state.delivered:
        return state
    evaluations = (*state.evaluations, (event.device, event.loss, event.target_tokens))
    return _not_awaited(replace(state, evaluations=evaluations), event.device)


def _taken(state: State) -> int:
    return len(state.outstanding) - len(state.overdue) + len(state.delivered)


def remaining_s(state: State, now_s: float, rules: Rules) -> float:
    """Returns how long the round stays open, in seconds."""
    return max(0.0, state.training_since_s + rules.selection.deadline_s - now_s)


def _not_awaited(state: State, device: str) -> State:
    return replace(state, outstanding=_without(state.outstanding, device), overdue=_without(state.overdue, device))


def _with(devices: Iterable[str], device: str) -> tuple[str, ...]:
    return tuple(sorted({*devices, device}))


def _without(devices: Iterable[str], device: str) -> tuple[str, ...]:
    return tuple(other for other in devices if other != device)
