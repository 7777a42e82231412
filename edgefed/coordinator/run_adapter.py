"""The adapter of a run, finished or not, read from its directory without the aggregator that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefed.aggregation.lora_exchange import state_adapter
from edgefed.coordinator.store import kept_settings
from edgefed.errors import AdapterError, StoreError
from edgefed.lora.low_rank import LowRank

__all__ = ["RunAdapter", "read_run_adapter"]


@dataclass(frozen=True, slots=True, eq=False)
class RunAdapter:
    """One state of a run.

    Attributes:
        adapter: module path -> ΔW in canonical form.
        base_model: its name in the federation's settings.
        target_modules: the federation's.
        rounds: merged rounds that the state is made of.
        loss: the devices' mean evaluated loss of it, nats per target token; None where nobody evaluated it.
    """

    adapter: Mapping[str, LowRank]
    base_model: str
    target_modules: tuple[str, ...]
    rounds: int
    loss: float | None


def read_run_adapter(run: Path, round_: str = "") -> RunAdapter:
    """Returns a state of a run.

    Args:
        run: an aggregator's directory; it is only read, and an aggregator may be at work in it.
        round_: "best" (lowest evaluated loss), "last", a number of merged rounds, or "" for best, and last where
            nothing was evaluated or nothing was better than the base model.

    Raises:
        AdapterError: there is no such state: says which there are.
        StoreError: the run's store cannot be read.
    """
    kept = sorted(int(path.name) for path in run.glob("global/*") if path.name.isdecimal())
    if not kept:
        raise AdapterError(f"{run} is not an aggregator's run directory: there is no state in {run / 'global'}")
    losses = _losses(run / "history.jsonl")
    rounds = _chosen(run, round_, kept, losses)
    settings = kept_settings(run)
    try:
        base_model, modules = str(settings["model"]["name"]), tuple(settings["method"]["target_modules"])
    except (KeyError, TypeError) as error:
        raise StoreError(f"the store in {run} is damaged: its settings have no {error}") from error
    return RunAdapter(state_adapter(run / "global" / str(rounds)), base_model, modules, rounds, losses.get(rounds))


def _chosen(run: Path, round_: str, kept: list[int], losses: Mapping[int, float]) -> int:
    """Returns after how many merged rounds the wanted state is."""
    evaluated = {rounds: loss for rounds, loss in losses.items() if rounds in kept}
    best = min(evaluated, key=lambda rounds: (evaluated[rounds], rounds), default=0)
    if round_ == "best" and not best:
        why = "no evaluated round is better than the base model" if evaluated else "nothing was evaluated"
        raise AdapterError(f"{run} has no best round: {why}; ask for the last one")
    rounds = int(round_) if round_.isdecimal() else best if best and round_ != "last" else kept[-1]
    if rounds not in kept or rounds == 0:
        there = ", ".join(str(number) for number in kept if number) or "none yet"
        raise AdapterError(f"{run} has no adapter after {rounds} rounds; it has those after: {there}")
    return rounds


def _losses(history: Path) -> dict[int, float]:
    """Returns the evaluated loss by number of merged rounds: what a round reports is the loss before it."""
    if not history.exists():
        return {}
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
        return {line["round"] - 1: line["loss_before"] for line in lines if line["loss_before"] is not None}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterError(f"{history} cannot be read: {error}") from error
