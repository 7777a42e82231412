"""A device's plans: decided from what was measured, within what the owner allows, remembered with what came of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgefed.agent.options import Limits as OwnersLimits
from edgefed.agent.plan import CannotTakePart, owners_plan
from edgefed.devices.emulation import real_profile
from edgefed.devices.profile import DeviceProfile
from edgefed.errors import ConfigError, ModelError
from edgefed.files import replace_file
from edgefed.models.layout import read_layout
from edgefed.planner.history import Outcome, decode_history
from edgefed.planner.machines import machine_of
from edgefed.planner.plan import decide, quickest_late, raw_memory
from edgefed.planner.seconds import step_seconds
from edgefed.planner.values import QUANTIZATIONS, Candidate, Choice, Limits, Machine, MemoryEstimate, Workload
from edgefed.planner.wording import in_words
from edgefed.planner.workloads import workload_of
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.records import RoundRecord
from edgefed.training.round_work import TrainingSet

__all__ = ["Planned", "Planning", "limits_of"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what it rests on; a device that could not be measured has only what its owner said.

    Attributes:
        plan: as it is announced and worked by.
        reason: why this one, in words.
        candidate: what it was chosen as.
        machine: that it was chosen for.
        worked_on: that does the work: another one where the device plays a board; null where nobody measured it.
        workload: that it was made for.
    """

    plan: Plan
    reason: str
    candidate: Candidate | None = None
    machine: Machine | None = None
    worked_on: Machine | None = None
    workload: Workload | None = None

    def described(self, record: RoundRecord) -> RoundRecord:
        """Returns the record with what was to be expected of the machine that did the work, and why it did this."""
        told = msgspec.structs.replace(record, plan_reason=self.reason)
        if self.candidate is None or self.worked_on is None or self.workload is None:
            return told
        if self.worked_on is self.machine and self.candidate.time is not None:
            peak_bytes, step_s = _comparable(self.worked_on, self.candidate.memory), self.candidate.time.step_s
        else:
            choice = self.candidate.choice
            peak_bytes = _comparable(self.worked_on, raw_memory(self.worked_on, self.workload, choice))
            step_s = step_seconds(self.worked_on, self.workload, choice)
        return msgspec.structs.replace(told, predicted_peak_bytes=peak_bytes, predicted_step_s=step_s)


class Planning:
    """Plans rounds.

    Args:
        limits: what the owner allows.
        profile: returns what the device is, as it is now.
        path: where the experience is kept.
    """

    def __init__(self, limits: OwnersLimits, profile: Callable[[], DeviceProfile], path: Path) -> None:
        self._limits = limits
        self._profile = profile
        self._path = path
        self._history = decode_history(path.read_bytes() if path.is_file() else b"{}")

    def plan(self, announced: RoundOpen, model_path: Path, training_set: TrainingSet) -> Planned:
        """Returns what this device takes on.

        Raises:
            CannotTakePart: nothing that the federation asks for fits; says what the nearest plan needs.
        """
        profile = self._profile()
        try:
            machine, layout = machine_of(profile), read_layout(model_path, announced.model.name)
        except (ConfigError, ModelError) as error:
            return Planned(owners_plan(announced, self._limits, str(error)), f"as the owner has set it: {error}")
        workload = workload_of(
            layout,
            announced.method,
            announced.training,
            source_tokens=training_set.source_tokens,
            target_tokens=training_set.target_tokens,
            global_rank=announced.manifest.rank,
            deadline_s=announced.deadline_s if announced.kind == "train" else None,
            private=announced.privacy.example_noise_multiplier > 0,
        )
        decision = decide(machine, workload, limits_of(self._limits), self._history)
        chosen, reason = decision.chosen, decision.reason
        if (
            chosen is None
            and machine.emulated is None
            and not self._history.knows_the_time(layout.name, machine.hardware)
        ):
            chosen = quickest_late(decision)
            reason = f"{reason}; no step of this model was measured here yet, so it is tried"
        if chosen is None:
            raise CannotTakePart(decision.reason)
        choice = chosen.choice
        plan = Plan(
            rank=choice.rank,
            held_rank=choice.held_rank,
            quantization=choice.quantization,
            micro_batch_size=choice.micro_batch_size,
            gradient_checkpointing=choice.gradient_checkpointing,
        )
        about = {"round": announced.round, "plan": in_words(choice), "reason": reason}
        _log.info("round %(round)d: %(plan)s: %(reason)s", about)
        worked_on = machine if profile.emulated is None else _measured(profile, choice)
        return Planned(plan, reason, chosen, machine, worked_on, workload)

    def succeeded(self, planned: Planned, record: RoundRecord) -> None:
        """Remembers what a plan really took. What an emulated board would have taken, nobody knows."""
        if record.steps and record.train_s and record.peak_memory_bytes:
            self._remember(planned, record.peak_memory_bytes, record.train_s / record.steps)

    def ran_out(self, planned: Planned) -> None:
        """Remembers that memory did not hold a plan, so that the next one is a notch lower."""
        self._remember(planned, None, None)

    def _remember(self, planned: Planned, peak_bytes: int | None, step_s: float | None) -> None:
        machine, workload, candidate = planned.machine, planned.workload, planned.candidate
        if machine is None or workload is None or candidate is None or (machine.emulated and peak_bytes is not None):
            return
        expected = raw_memory(machine, workload, candidate.choice)
        outcome = Outcome(
            model=workload.layout.name,
            hardware=machine.hardware,
            quantization=candidate.choice.quantization,
            predicted_peak_bytes=_comparable(machine, expected),
            decided_bytes=expected.decided_bytes,
            predicted_step_s=step_seconds(machine, workload, candidate.choice),
            peak_bytes=peak_bytes,
            step_s=step_s,
            available_bytes=machine.memory_available_bytes,
            plan=in_words(candidate.choice),
        )
        self._history = self._history.after(outcome)
        with contextlib.suppress(OSError):  # a full disk costs the experience, not the round
            replace_file(self._path, [msgspec.json.encode(self._history)])


def _measured(profile: DeviceProfile, choice: Choice) -> Machine | None:
    """Returns the machine behind a board that is played; None where it has no rate for the choice."""
    with contextlib.suppress(ConfigError):
        machine = machine_of(real_profile(profile))
        if choice.quantization in machine.flops_per_s:
            return machine
    return None


def _comparable(machine: Machine, memory: MemoryEstimate) -> int:
    """Returns what the record's peak is to be compared with: a GPU's allocator does not see libraries and context."""
    return memory.allocated_bytes if machine.hardware == "cuda" else memory.total_bytes


def limits_of(owner: OwnersLimits) -> Limits:
    """Returns the planner's limits as the owner of a device wrote them down."""
    return Limits(
        max_rank=owner.max_rank or None,
        max_held_rank=owner.max_held_rank or None,
        quantizations=QUANTIZATIONS if owner.quantization == "auto" else (owner.quantization,),
        max_memory_bytes=owner.max_memory_bytes or None,
    )
