"""A release on its way over a fleet, in stages: (wish, progress, devices, now) → progress. No I/O, no clock.

A stage is a share of the devices that are there, in the order of a hash of their ids, so that the same devices are the
first ones in every rollout. It is over when each device in it has installed the release, which the device itself says
after its installer has seen the new agent stay connected; only then does the next stage begin. Whoever fails counts,
and more failures than are allowed end the rollout: nobody new is offered the release.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from edgefed.devices.release_state import ReleaseState

__all__ = ["Candidate", "OfferedBundle", "Progress", "Rollout", "Step", "advance", "fitting", "in_order"]

StepState = Literal["offered", "fetching", "delivered", "installed", "rolled-back", "refused", "silent"]

_FAILED = ("rolled-back", "refused", "silent")


class OfferedBundle(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle of the release: it is for one kind of machine.

    Attributes:
        sha256, size_bytes: of its file.
        name, number, version: of the release, and of edgefed in it.
        architecture, python: of the machines, as `release.json` has them.
        lock_sha256: of the list of its wheels.
    """

    sha256: str
    size_bytes: int
    name: str
    number: int
    version: str
    architecture: str
    python: str
    lock_sha256: str

    @property
    def contents(self) -> tuple[str, str, str]:
        """What a bundle that was made again of the same wheels has in common with this one."""
        return self.architecture, self.python, self.lock_sha256


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator wishes.

    Attributes:
        id: of this wish.
        bundles: one for each kind of machine.
        stages: percent of the devices, growing.
        labels: only devices that have all of these.
        max_failures: more than so many end it.
        patience_s: a device that has nothing new to say for so long has failed.
        began_unix_s: when it was wished.
        stopped: the operator has ended it.
    """

    version: Literal[1] = 1
    id: str
    bundles: tuple[OfferedBundle, ...]
    stages: Annotated[tuple[int, ...], Meta(min_length=1)]
    labels: dict[str, str] = {}
    max_failures: int = 0
    patience_s: float = 1800.0
    began_unix_s: float
    stopped: bool = False


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """How far one device is.

    Attributes:
        bundle: sha256 of the bundle that is for it.
        state: as the device says, `offered` before that, and `silent` where it says nothing for too long.
        since_unix_s: when there last was something new.
        received_bytes: that it has.
        reason: why it failed.
    """

    bundle: str
    state: StepState
    since_unix_s: float
    received_bytes: int = 0
    reason: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more is awaited of it."""
        return self.state == "installed" or self.failed

    @property
    def failed(self) -> bool:
        """Whether the device does not run the release, and why is known or can be guessed."""
        return self.state in _FAILED


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the rollout is.

    Attributes:
        rollout: id of the wish; empty where there never was one.
        stage: index of the present stage.
        steps: by device, of everybody who was offered the release.
        outcome: `done` when everybody who is there has it; `failed` for good; `stopped` by the operator.
        reason: why it failed.
    """

    rollout: str = ""
    stage: int = 0
    steps: dict[str, Step] = {}
    outcome: Literal["", "done", "failed", "stopped"] = ""
    reason: str = ""

    @property
    def failures(self) -> int:
        """How many devices have failed."""
        return sum(step.failed for step in self.steps.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A device, as far as a rollout is concerned.

    Attributes:
        online: whether it can be told anything now.
        architecture, python: of the machine.
        report: what it says of the latest release that it was offered.
        labels: the operator's.
    """

    online: bool
    architecture: str
    python: str
    report: ReleaseState | None = None
    labels: Mapping[str, str]


def fitting(rollout: Rollout, candidate: Candidate) -> OfferedBundle | None:
    """Returns the bundle for a device; None where there is none, or the rollout is not for it."""
    if not rollout.labels.items() <= candidate.labels.items():
        return None
    python = ".".join(candidate.python.split(".")[:2])
    for bundle in rollout.bundles:
        if (bundle.architecture, bundle.python) == (candidate.architecture, python):
            return bundle
    return None


def in_order(device: str) -> tuple[bytes, str]:
    """Returns what devices are sorted by: a hash, so that no kind of board and no room comes first as a whole."""
    return hashlib.sha256(device.encode()).digest(), device


def advance(rollout: Rollout, progress: Progress, candidates: Mapping[str, Candidate], now_unix_s: float) -> Progress:
    """Returns the progress after a look at the devices.

    Args:
        rollout: the wish.
        progress: so far; of another rollout, it counts for nothing.
        candidates: every device, by id.
        now_unix_s: the time.
    """
    if progress.rollout != rollout.id:
        progress = Progress(rollout=rollout.id)
    steps = {
        device: _followed(step, candidates.get(device), rollout, now_unix_s) for device, step in progress.steps.items()
    }
    progress = replace(progress, steps=steps, outcome="", reason="")
    if rollout.stopped:
        return replace(progress, outcome="stopped")
    if progress.failures > rollout.max_failures:
        return replace(progress, outcome="failed", reason=_why(progress, rollout))
    while True:
        progress = _offered(rollout, progress, candidates, now_unix_s)
        if not progress.steps or not all(step.over for step in progress.steps.values()):
            return progress
        if progress.stage + 1 == len(rollout.stages):
            return replace(progress, outcome="done")
        progress = replace(progress, stage=progress.stage + 1)


def _followed(step: Step, candidate: Candidate | None, rollout: Rollout, now_unix_s: float) -> Step:
    """Returns a step after what its device says, or does not say."""
    report = None if candidate is None else candidate.report
    if report is not None and (report.rollout, report.bundle) == (rollout.id, step.bundle):
        heard = replace(step, state=report.state, received_bytes=report.received_bytes, reason=report.reason[:1024])
        if heard != step and (step.state != "silent" or heard.over):
            return replace(heard, since_unix_s=now_unix_s)
    if not step.over and now_unix_s - step.since_unix_s > rollout.patience_s:
        return replace(step, state="silent", since_unix_s=now_unix_s, reason=f"nothing new since it was {step.state}")
    return step


def _offered(rollout: Rollout, progress: Progress, candidates: Mapping[str, Candidate], now_unix_s: float) -> Progress:
    """Returns the progress with as many devices as the stage has places for."""
    fit = {
        device: bundle
        for device, one in candidates.items()
        if one.online and device not in progress.steps and (bundle := fitting(rollout, one)) is not None
    }
    places = math.ceil((len(fit) + len(progress.steps)) * rollout.stages[progress.stage] / 100)
    chosen = sorted(fit, key=in_order)[: max(0, places - len(progress.steps))]
    fresh = {device: Step(bundle=fit[device].sha256, state="offered", since_unix_s=now_unix_s) for device in chosen}
    return replace(progress, steps={**progress.steps, **fresh})


def _why(progress: Progress, rollout: Rollout) -> str:
    failed = [f"{device} ({step.state})" for device, step in sorted(progress.steps.items()) if step.failed]
    allowed = f"at most {rollout.max_failures} may" if rollout.max_failures else "none may"
    return f"{len(failed)} failed, and {allowed}: {', '.join(failed[:5])}{', …' if len(failed) > 5 else ''}"
