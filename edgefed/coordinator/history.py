"""The history file: one JSON line per round, derived from the store, so it can be made again at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.round_state import State
from edgefed.coordinator.store import Store
from edgefed.files import replace_file

__all__ = ["round_lines", "write_history"]


def write_history(path: Path, store: Store, state: State) -> None:
    """Replaces the history file by what the store holds now."""
    replace_file(path, [msgspec.json.encode(line) + b"\n" for line in round_lines(store, state)])


def round_lines(store: Store, state: State) -> list[dict[str, Any]]:
    """Returns a dictionary per merged round, in order, then one for the final evaluation if there was one.

    `loss_before` is the mean evaluated loss of the adapter that the round started from, in nats per target token;
    `devices` holds the weight of each update in the sum and the record that came with it; `refused` what was not used,
    and `interventions` which accepted updates entered the sum otherwise than as they came.
    """
    losses = dict(state.losses)
    answers: dict[int, list[Answer]] = {}
    for answer in store.answers():
        answers.setdefault(answer.round, []).append(answer)
    merged = store.merged_rounds()
    lines = [_merged_line(one, answers.get(one.round, []), losses.get(one.round - 1)) for one in merged]
    final = len(merged) + 1
    evaluated = [answer for answer in answers.get(final, []) if answer.outcome == "evaluated"]
    if evaluated:
        lines.append(
            {
                "round": final,
                "kind": "evaluate",
                "loss_before": losses.get(len(merged)),
                "devices": {answer.device: {"record": msgspec.to_builtins(answer.record)} for answer in evaluated},
            }
        )
    return lines


def _merged_line(merged: MergedRound, answers: list[Answer], loss_before: float | None) -> dict[str, Any]:
    by_device = {answer.device: answer for answer in answers if answer.outcome in ("counted", "late")}
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
        "interventions": msgspec.to_builtins(merged.interventions),
        "adapter_rank": merged.manifest.rank,
        "adapter_norm": merged.norm,
        "merge_s": merged.merge_s,
        "received_bytes": merged.received_bytes,
        "broadcast_bytes": merged.broadcast_bytes,
        "opened_unix_s": merged.opened_unix_s,
        "merged_unix_s": merged.merged_unix_s,
    }
