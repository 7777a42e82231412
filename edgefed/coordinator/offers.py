"""What becomes of an update that a device offers, told from the state of the federation. Pure."""

from __future__ import annotations

from typing import Literal

from edgefed.coordinator.round_state import Rules, State

__all__ = ["OfferVerdict", "judge_offer"]

OfferVerdict = Literal["wanted", "late", "dropped", "duplicate", "unknown", "removed"]


def judge_offer(state: State, rules: Rules, device: str, round_: int) -> OfferVerdict:
    """Returns what becomes of an update that a device offers, before it spends any bytes on it.

    `wanted` for the open round, `late` for a later sum, `dropped` for nothing, `duplicate` if an
    update of the same device and round is already in, `unknown` if the device was never accepted into the open round,
    `removed` if the operator wants nothing more of it.
    One that an earlier sum already has, or that nobody asked for, is `dropped`.
    """
    held = (*state.updates, *state.carried, *state.waiting)
    if any(u.device == device and u.round == round_ for u in held):
        return "duplicate"
    if (device, "removed") in state.held:
        return "removed"
    if state.phase == "finished" or round_ > state.round:
        return "dropped"
    if round_ == state.round and state.phase in ("gathering", "training"):
        if state.phase == "gathering" or device not in state.participants:
            return "unknown"
        return "wanted" if state.kind == "train" else "dropped"
    return "late" if rules.selection.late == "discount" and (round_, device) in state.owed else "dropped"
