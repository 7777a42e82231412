"""The round machine: (state, event, now) → (state, actions). No I/O, no clock; the same events give the same state.

::

    gathering ──enough joined──▶ training ──closed──▶ merging ──merged──▶ gathering (next round) … ▶ finished

A round gathers volunteers, selects from them, and closes when every selected device has delivered or gone, when the
wanted number of updates is in, or at the deadline; never below the quorum. Publishing a merged adapter and opening the
next round are one event, so there is no moment in which a crash could lose or repeat a merge.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from edgefed.coordinator.selection import Selection
from edgefed.protocol.messages.retained import Phase

__all__ = [
    "Accept",
    "Action",
    "Announce",
    "Begin",
    "DeviceJoined",
    "DeviceLeft",
    "DeviceReturned",
    "EvaluationReceived",
    "Event",
    "Finish",
    "Merge",
    "Merged",
    "OfferVerdict",
    "Refuse",
    "Rules",
    "State",
    "Stop",
    "Tick",
    "Update",
    "UpdateReceived",
    "judge_offer",
    "next_deadline",
    "recover",
    "step",
]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the machine is told about the federation.

    Attributes:
        rounds: rounds of training.
        selection: who takes part, and when a round closes.
        final_evaluation: whether a last round looks at the final adapter without training.
        target_loss: the federation ends early once the evaluated loss is at most this.
        seed: of the selection.
    """

    rounds: int
    selection: Selection
    final_evaluation: bool = True
    target_loss: float | None = None
    seed: int = 0

    @property
    def places(self) -> int | None:
        """How many devices a round takes in, over-selection included; None takes everybody."""
        selection = self.selection
        if not selection.participants:
            return None
        exact = selection.participants * selection.over_selection
        return math.ceil(round(exact, 9))  # 50 · 1.1 is 55.00000000000001 in floating point, and means 55


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """An update that is safely in the store.

    Attributes:
        device: who sent it.
        round: the round it was trained in.
        sha256: of its blob.
        examples: training examples behind it, its weight before any discount.
        rank, held_rank: trained rank, and how much of the round's global adapter it started from.
    """

    device: str
    round: int
    sha256: str
    examples: int
    rank: int
    held_rank: int


# --- events: what happened; all of them serialise, because the store keeps them as its journal ------------------------


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """The federation starts."""


class DeviceJoined(msgspec.Struct, frozen=True, tag="joined"):
    """A device asked to take part in the open round."""

    device: str


class DeviceLeft(msgspec.Struct, frozen=True, tag="left"):
    """A device declined, gave up, or was lost."""

    device: str


class DeviceReturned(msgspec.Struct, frozen=True, tag="returned"):
    """A participant that was lost is back and goes on with the round."""

    device: str


class UpdateReceived(msgspec.Struct, frozen=True, tag="update"):
    """An update has been checked and is durable.

    `loss` and `target_tokens` are of the device's evaluation of the adapter it received, where it made one.
    """

    update: Update
    loss: float | None = None
    target_tokens: int = 0


class EvaluationReceived(msgspec.Struct, frozen=True, tag="evaluation"):
    """A device has evaluated the final adapter."""

    device: str
    round: int
    loss: float
    target_tokens: int


class Merged(msgspec.Struct, frozen=True, tag="merged"):
    """The round's sum is durable."""

    round: int


class Tick(msgspec.Struct, frozen=True, tag="tick"):
    """Time passed."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Somebody ended the federation."""

    reason: str


Event = Begin | DeviceJoined | DeviceLeft | DeviceReturned | UpdateReceived | EvaluationReceived | Merged | Tick | Stop


# --- actions: what to do about it -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish the open round (again)."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Tell a device that it takes part."""

    device: str
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell a device that it does not take part in this round."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Merge:
    """Combine these updates into the global adapter, then report `Merged`."""

    round: int
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Announce the end."""

    reason: str


Action = Announce | Accept | Refuse | Merge | Finish


@dataclass(frozen=True, slots=True)
class State:
    """Everything the machine knows.

    Attributes:
        phase: where the round stands.
        round: the open round, from 1; 0 before the first.
        kind: `evaluate` in the round after the last.
        opened_at_s: when the round opened, or was last reopened.
        training_since_s: when its participants were selected.
        candidates: devices that joined and wait for the selection, sorted.
        participants: devices that were accepted, sorted.
        outstanding: participants that have neither delivered nor gone, sorted.
        updates: this round's updates in order of arrival.
        carried: late updates of earlier rounds that this round's sum includes.
        waiting: late updates that arrived while this round's sum was being made; the next round carries them.
        owed: (round, device) of participants of closed rounds whose updates the next sum would still take.
        evaluations: (loss, target tokens) of the adapter that this round started from, by device.
        losses: (round, loss) of each evaluated adapter; round 0 is the base model.
        finished_reason: why it ended.
    """

    phase: Phase = "gathering"
    round: int = 0
    kind: Literal["train", "evaluate"] = "train"
    opened_at_s: float = 0.0
    training_since_s: float = 0.0
    candidates: tuple[str, ...] = ()
    participants: tuple[str, ...] = ()
    outstanding: tuple[str, ...] = ()
    updates: tuple[Update, ...] = ()
    carried: tuple[Update, ...] = ()
    waiting: tuple[Update, ...] = ()
    owed: frozenset[tuple[int, str]] = frozenset()
    evaluations: tuple[tuple[str, float, int], ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    finished_reason: str = ""

    @property
    def best(self) -> tuple[int, float] | None:
        """The round whose adapter had the lowest evaluated loss, and that loss; None before any evaluation."""
        return min(self.losses, key=lambda pair: (pair[1], pair[0]), default=None)

    @property
    def delivered(self) -> frozenset[str]:
        """Devices whose answer to this round is in."""
        if self.kind == "evaluate":
            return frozenset(device for device, _, _ in self.evaluations)
        return frozenset(update.device for update in self.updates)


OfferVerdict = Literal["wanted", "late", "dropped", "duplicate", "unknown"]


def judge_offer(state: State, rules: Rules, device: str, round_: int) -> OfferVerdict:
    """Returns what becomes of an update that a device offers, before it spends any bytes on it.

    `wanted` for the open round, `late` for a later sum, `dropped` for nothing, `duplicate` if an
    update of the same device and round is already in, `unknown` if the device was never accepted into the open round.
    One that an earlier sum already has, or that nobody asked for, is `dropped`.
    """
    held = (*state.updates, *state.carried, *state.waiting)
    if any(u.device == device and u.round == round_ for u in held):
        return "duplicate"
    if state.phase == "finished" or round_ > state.round:
        return "dropped"
    if round_ == state.round and state.phase in ("gathering", "training"):
        if state.phase == "gathering" or device not in state.participants:
            return "unknown"
        return "wanted" if state.kind == "train" else "dropped"
    return "late" if rules.selection.late == "discount" and (round_, device) in state.owed else "dropped"


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
    elif isinstance(event, DeviceLeft):
        state, actions = _leave(state, event.device), ()
    elif isinstance(event, DeviceReturned):
        state, actions = _return(state, event.device), ()
    elif isinstance(event, UpdateReceived):
        state, actions = _receive(state, event, rules), ()
    elif isinstance(event, EvaluationReceived):
        state, actions = _evaluate(state, event), ()
    else:
        actions = ()
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
        round=round_, kind=kind, opened_at_s=now_s, carried=state.carried, owed=state.owed, losses=state.losses
    )
    return opened, (Announce(),)


def _finish(state: State, reason: str) -> tuple[State, tuple[Action, ...]]:
    return replace(state, phase="finished", outstanding=(), finished_reason=reason), (Finish(reason),)


def _join(state: State, device: str, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
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
    if device not in state.outstanding:  # else it asks again because the answer got lost
        state = replace(
            state,
            participants=_with(state.participants, device),
            outstanding=_with(state.outstanding, device),
        )
    return state, (Accept(device, _remaining_s(state, now_s, rules)),)


def _leave(state: State, device: str) -> State:
    if device not in state.candidates and device not in state.outstanding:
        return state
    return replace(
        state,
        candidates=_without(state.candidates, device),
        outstanding=_without(state.outstanding, device),
    )


def _return(state: State, device: str) -> State:
    gone = state.phase == "training" and device in state.participants and device not in state.outstanding
    if not gone or device in state.delivered:
        return state
    return replace(state, outstanding=_with(state.outstanding, device))


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
    state = replace(
        state,
        updates=(*state.updates, update),
        outstanding=_without(state.outstanding, update.device),
    )
    if event.loss is None or not event.target_tokens:
        return state
    return replace(state, evaluations=(*state.evaluations, (update.device, event.loss, event.target_tokens)))


def _evaluate(state: State, event: EvaluationReceived) -> State:
    expected = state.kind == "evaluate" and state.phase == "training" and event.round == state.round
    if not expected or event.device not in state.participants or event.device in state.delivered:
        return state
    return replace(
        state,
        evaluations=(*state.evaluations, (event.device, event.loss, event.target_tokens)),
        outstanding=_without(state.outstanding, event.device),
    )


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
        # Below quorum: reopen, and call everybody again. Who is overdue still counts, but no longer takes up a place.
        return replace(state, training_since_s=now_s, outstanding=()), (Announce(),)
    return state, ()


def _close(state: State, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    tokens = sum(n for _, _, n in state.evaluations)
    if tokens:
        loss = sum(value * n for _, value, n in sorted(state.evaluations)) / tokens
        state = replace(state, losses=(*state.losses, (state.round - 1, loss)))
    if state.kind == "evaluate":
        return _finish(state, f"all {rules.rounds} rounds are done")
    state = replace(state, phase="merging", outstanding=(), owed=_owed(state, rules))
    return state, (Merge(state.round, (*state.carried, *state.updates)),)


def _after_merge(state: State, event: Merged, now_s: float, rules: Rules) -> tuple[State, tuple[Action, ...]]:
    if state.phase != "merging" or event.round != state.round:
        return state, ()
    merged = replace(state, carried=state.waiting, waiting=())
    target = rules.target_loss
    if target is not None and any(loss <= target for _, loss in state.losses):
        return _finish(merged, f"the target loss of {target:g} was reached")
    if state.round < rules.rounds:
        return _open(merged, state.round + 1, "train", now_s)
    if rules.final_evaluation:
        return _open(merged, state.round + 1, "evaluate", now_s)
    return _finish(merged, f"all {rules.rounds} rounds are done")


# --- small helpers ----------------------------------------------------------------------------------------------------


def _owed(state: State, rules: Rules) -> frozenset[tuple[int, str]]:
    """Returns whose updates the next sum would take, when this one is made without them."""
    if state.round == rules.rounds:
        return frozenset()
    missing = {(state.round, device) for device in state.participants if device not in state.delivered}
    oldest = state.round + 1 - rules.selection.max_staleness
    return frozenset(pair for pair in state.owed | missing if pair[0] >= oldest)


def _needed(state: State, rules: Rules) -> int:
    """How many must have joined when gathering ends: a last look that few can give must not hold up the end."""
    return rules.selection.quorum if state.kind == "train" else 1


def _taken(state: State) -> int:
    return len(state.outstanding) + len(state.delivered)


def _remaining_s(state: State, now_s: float, rules: Rules) -> float:
    return max(0.0, state.training_since_s + rules.selection.deadline_s - now_s)


def _with(devices: Iterable[str], device: str) -> tuple[str, ...]:
    return tuple(sorted({*devices, device}))


def _without(devices: Iterable[str], device: str) -> tuple[str, ...]:
    return tuple(other for other in devices if other != device)
