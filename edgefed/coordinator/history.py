"""The history file: one JSON line per round, derived from the store, so it can be made again at any time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.round_state import State
from edgefed.coordinator.store import Store
from edgefed.files import replace_file

__all__ = ["extend_history", "round_lines", "write_history"]

_UNSETTLED = 8
"""Rounds whose lines may still change, because an update that came late was not used; older ones wait for the end."""


def write_history(path: Path, store: Store, state: State) -> None:
    """Replaces the history file by what the store holds now. One round is in memory at a time."""
    replace_file(path, (msgspec.json.encode(line) + b"\n" for line in round_lines(store, state)))


def extend_history(path: Path, store: Store, state: State) -> None:
    """Brings the history file up to date after a merge: older lines are copied, those of the latest rounds made anew.

    To make them all anew would take longer with every round.
    """
    replace_file(path, _extended(path, store, state, settled=max(0, store.merged_count - _UNSETTLED)))


def _extended(path: Path, store: Store, state: State, settled: int) -> Iterator[bytes]:
    kept = 0
    if path.exists():
        with path.open("rb") as file:
            for line in islice(file, settled):
                kept += 1
                yield line
    for fresh in round_lines(store, state, after=kept):
        yield msgspec.json.encode(fresh) + b"\n"


def round_lines(store: Store, state: State, after: int = 0) -> Iterator[dict[str, Any]]:
    """Yields a dictionary per merged round after some, in order, then one for the final evaluation if there was one.

    `loss_before` is the mean evaluated loss of the adapter that the round started from, in nats per target token;
    `devices` holds the weight that each device had in the sum and the record of its update of this round, null where
    only a late one of an earlier round is in it; `refused` what was not used, and `interventions` which accepted
    updates entered the sum otherwise than as they came.
    """
    losses = dict(state.losses)
    for one in store.merged_rounds(after):
        yield _merged_line(one, store.answers(one.round), losses.get(one.round - 1))
    last = store.last_round
    final = last + 1
    evaluated = [answer for answer in store.answers(final) if answer.outcome == "evaluated"]
    if evaluated:
        yield {
            "round": final,
            "kind": "evaluate",
            "loss_before": losses.get(last),
            "devices": {answer.device: {"record": msgspec.to_builtins(answer.record)} for answer in evaluated},
        }


def _merged_line(merged: MergedRound, answers: list[Answer], loss_before: float | None) -> dict[str, Any]:
    by_device = {answer.device: answer for answer in answers if answer.outcome == "counted"}
    devices = {}
    for device, weight in merged.devices.items():
        answer = by_device.get(device)
        record = None if answer is None else msgspec.to_builtins(answer.record)
        devices[device] = {"weight": weight, "record": record}
    return {
        "round": merged.round,
        "kind": "train",
        "loss_before": loss_before,
        "devices": devices,
        "refused": [
            {"device": answer.device, "outcome": answer.outcome, "reason": answer.reason}
            for answer in answers
            if answer.outcome in ("dropped", "rejected")
        ],
        "copied": merged.copied,
        "given_up_because": merged.given_up_because,
        "interventions": msgspec.to_builtins(merged.interventions),
        "adapter_rank": merged.manifest.rank,
        "adapter_norm": merged.norm,
        "merge_s": merged.merge_s,
        "received_bytes": merged.received_bytes,
        "broadcast_bytes": merged.broadcast_bytes,
        "opened_unix_s": merged.opened_unix_s,
        "merged_unix_s": merged.merged_unix_s,
        "epsilon": merged.epsilon,
        "delta": merged.delta,
        "privacy_assumptions": merged.privacy_assumptions,
    }
