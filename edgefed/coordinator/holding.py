"""What an operator's wishes mean for the open round: who gets no task, who is taken out of it, who is missed. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from edgefed.coordinator.events import Refuse, RosterRead
from edgefed.coordinator.round_state import State
from edgefed.protocol.messages.down import Duty

__all__ = ["obey", "refusal", "why_waiting"]

_WHY: dict[Duty, str] = {
    "paused": "the operator has paused this device",
    "draining": "the operator lets this device run dry: it gets no new task",
    "removed": "the operator has removed this device from the fleet",
}


def refusal(state: State, device: str) -> Refuse | None:
    """Returns what a device is told that would join and is held; None where it may. Who takes part may ask again."""
    duty = dict(state.held).get(device)
    return None if duty is None or device in state.participants else Refuse(device, _WHY[duty])


def obey(state: State, event: RosterRead) -> tuple[State, tuple[Refuse, ...]]:
    """Takes who is held out of what has not begun, and who is removed out of what has; until they are taken back."""
    if event.held == state.held:
        return state, ()
    held = dict(event.held)
    removed = {device for device, duty in event.held if duty == "removed"}
    accepted = {*state.participants, *state.taken_out}
    taken_out = (accepted & removed) - state.delivered
    obeyed = replace(
        state,
        held=event.held,
        candidates=tuple(device for device in state.candidates if device not in held),
        participants=tuple(sorted(accepted - taken_out)),
        taken_out=tuple(sorted(taken_out)),
        outstanding=tuple(device for device in state.outstanding if device not in removed),
        overdue=tuple(device for device in state.overdue if device not in removed),
        owed=frozenset(pair for pair in state.owed if pair[1] not in removed),
        diverged=tuple(device for device in state.diverged if device not in removed),  # they are of the participants
    )
    return obeyed, tuple(Refuse(device, _WHY[held[device]]) for device in state.candidates if device in held)


def why_waiting(state: State, quorum: int) -> str:
    """Returns what an open round waits for that has too few devices because of the operator; "" of any other."""
    resting = Counter(duty for _, duty in state.held if duty != "removed")
    there = {*state.candidates, *state.outstanding, *state.delivered} - {*state.overdue}
    needed = quorum if state.kind == "train" else 1
    if not resting or state.phase not in ("gathering", "training") or len(there) >= needed:
        return ""
    told = " and ".join(f"{count} {duty}" for duty, count in sorted(resting.items()))
    return f"it waits for {needed} device{'s' if needed > 1 else ''}, and the operator has {told}"
