"""What the round machine knows: the rules it was told, and the state of the federation. Values only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from edgefed.coordinator.divergence import Divergence
from edgefed.coordinator.events import GiveUp, Update
from edgefed.coordinator.selection import Selection
from edgefed.protocol.messages.down import Duty
from edgefed.protocol.messages.retained import Phase

__all__ = ["Rules", "State"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the machine is told about the federation.

    Attributes:
        rounds: rounds of training.
        selection: who takes part, and when a round closes.
        final_evaluation: whether a last round looks at the final adapter without training.
        target_loss: the federation ends early once the evaluated loss is at most this.
        seed: of the selection.
        divergence: when a round is given up.
    """

    rounds: int
    selection: Selection
    final_evaluation: bool = True
    target_loss: float | None = None
    seed: int = 0
    divergence: Divergence = field(default_factory=Divergence)

    @property
    def places(self) -> int | None:
        """How many devices a round takes in, over-selection included; None takes everybody."""
        selection = self.selection
        if not selection.participants:
            return None
        exact = selection.participants * selection.over_selection
        return math.ceil(round(exact, 9))  # 50 · 1.1 is 55.00000000000001 in floating point, and means 55


@dataclass(frozen=True, slots=True)
class State:
    """Everything the machine knows.

    Attributes:
        phase: where the round stands.
        round: the open round, from 1; 0 before the first.
        kind: `evaluate` in the round after the last.
        opened_at_s: when the round opened.
        training_since_s: when its participants were selected, or everybody was last called again.
        candidates: devices that joined and wait for the selection, sorted.
        participants: devices that were accepted, sorted.
        outstanding: participants that have neither delivered nor gone, sorted: whom the round waits for.
        overdue: those of them that were not heard of since everybody was called again, sorted; they take up no place.
        updates: this round's updates in order of arrival.
        carried: late updates of earlier rounds that this round's sum includes.
        waiting: late updates that arrived while this round's sum was being made; the next round carries them.
        owed: (round, device) of participants of closed rounds whose updates the next sum would still take.
        evaluations: (loss, target tokens) of the adapter that this round started from, by device.
        losses: (round, loss) of each evaluated adapter; round 0 is the base model.
        typical: (round, median loss over the devices) of each evaluated adapter that has not diverged.
        diverged: participants that have found values that are not finite, sorted.
        giving_up: what is being done instead of a sum.
        given_up: rounds that were given up in a row.
        copied: the last round that was given up: its adapter is an earlier one once more.
        finished_reason: why it ended.
        held: devices that get no new task, and what the operator wants of them, sorted.
        taken_out: devices that were accepted, and that the operator has removed since, sorted; taken back, they go on.
        failed: whether it ended without reaching its last round or its target.
    """

    phase: Phase = "gathering"
    round: int = 0
    kind: Literal["train", "evaluate"] = "train"
    opened_at_s: float = 0.0
    training_since_s: float = 0.0
    candidates: tuple[str, ...] = ()
    participants: tuple[str, ...] = ()
    outstanding: tuple[str, ...] = ()
    overdue: tuple[str, ...] = ()
    updates: tuple[Update, ...] = ()
    carried: tuple[Update, ...] = ()
    waiting: tuple[Update, ...] = ()
    owed: frozenset[tuple[int, str]] = frozenset()
    evaluations: tuple[tuple[str, float, int], ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    typical: tuple[tuple[int, float], ...] = ()
    diverged: tuple[str, ...] = ()
    giving_up: GiveUp | None = None
    given_up: int = 0
    copied: int = 0
    finished_reason: str = ""
    held: tuple[tuple[str, Duty], ...] = ()
    taken_out: tuple[str, ...] = ()
    failed: bool = False

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
