"""The aggregator's part in a rollout: looks at the wish and the devices, offers bundles, sends what is asked for.

::

    <run>/update.json               the operator's wish; the command line writes it
    <run>/update-progress.json      how far it is; the aggregator writes it
    <run>/releases/<sha256>.bundle  what is offered; the command line puts it there
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from edgefed.coordinator.broadcast import Broadcast
from edgefed.coordinator.rollout import Candidate, Progress, Rollout, Step, advance
from edgefed.coordinator.roster import Roster
from edgefed.coordinator.run_directory import MAKE_ROOM, RunDirectory
from edgefed.coordinator.sightings import Sighting, Sightings
from edgefed.errors import StoreError
from edgefed.files import replace_file
from edgefed.protocol.messages.down import DownMessage, ReleaseOffered

_Document = TypeVar("_Document", Rollout, Progress)

__all__ = ["RolloutDesk", "candidate_of", "read_progress", "read_rollout", "write_rollout"]

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_SAY_AGAIN_S = 15.0


class RolloutDesk:
    """Carries a release to the devices, one stage after the other.

    Args:
        run: id of this run.
        directory: of the run.
        signed: whether the fleet has signatures; without them, no code is offered.
        sightings: what is known of the devices.
        roster: returns what the operator says of them.
        broadcast: what bundles are sent with.
        tell: sends a message to a device.
    """

    def __init__(
        self,
        run: str,
        directory: RunDirectory,
        *,
        signed: bool,
        sightings: Sightings,
        roster: Callable[[], Roster],
        broadcast: Broadcast,
        tell: Callable[[str, DownMessage], None],
    ) -> None:
        self._run = run
        self._directory = directory
        self._signed = signed
        self._sightings = sightings
        self._roster = roster
        self._broadcast = broadcast
        self._tell = tell
        self._rollout: Rollout | None = None
        self._epoch_unix_s = time.time() - time.monotonic()  # once: a clock that is set makes nobody silent
        self._progress = _kept_progress(directory, time.time())
        self._seen: tuple[int, int, int] | None = None
        self._offered: tuple[str, bool] = ("", False)
        self._looked_at_s = 0.0
        self._told_at_s: dict[str, float] = {}

    @property
    def may_take_s(self) -> float:
        """How long the release that devices are being offered may take at most; 0 where none is, or it is over."""
        rollout, progress = self._rollout, self._progress
        if rollout is None or progress.rollout != rollout.id or progress.outcome or not progress.steps:
            return 0.0
        return len(rollout.stages) * rollout.patience_s

    def look(self) -> None:
        """Does what is to be done now.

        Raises:
            StoreError: the progress cannot be kept.
        """
        if time.monotonic() - self._looked_at_s < _LOOK_EVERY_S:
            return
        self._looked_at_s = time.monotonic()
        self._read_the_wish()
        rollout = self._rollout
        if rollout is None:
            return
        now_unix_s = self._epoch_unix_s + time.monotonic()
        progress = advance(rollout, self._awaited(), self._candidates(), now_unix_s)
        if progress != self._progress:
            _log.info("update %s: stage %d, %s", rollout.id, progress.stage + 1, progress.outcome or "under way")
            _write(self._directory.rollout_progress, progress)  # before anybody is told
            self._progress = progress
        self._offer(rollout, progress)

    def _read_the_wish(self) -> None:
        path = self._directory.rollout
        try:
            status = path.stat()
        except FileNotFoundError:
            self._rollout = self._seen = None
            return
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._rollout = read_rollout(self._directory.path)
        except StoreError as error:
            _log.error("%s; nothing is offered", error)
            self._rollout = None
        if self._rollout is not None and not self._signed:
            _log.error("a release is to be offered, and this fleet has no signatures: set [broker] signed = true")
            self._rollout = None

    def _awaited(self) -> Progress:
        """Returns the progress without who was removed by the operator before it was through: nobody waits for it."""
        roster, steps = self._roster(), self._progress.steps
        kept = {device: step for device, step in steps.items() if step.over or roster.entry(device).duty != "removed"}
        return self._progress if len(kept) == len(steps) else replace(self._progress, steps=kept)

    def _candidates(self) -> dict[str, Candidate]:
        roster = self._roster()
        return {
            device: candidate_of(sighting, roster.entry(device).labels)
            for device, sighting in self._sightings.all().items()
            if roster.entry(device).duty != "removed"
        }

    def _offer(self, rollout: Rollout, progress: Progress) -> None:
        """Lays out the bundles, and tells who has not answered yet."""
        open_ = progress.outcome in ("", "done")
        if self._offered != (rollout.id, open_):
            self._offered = (rollout.id, open_)
            self._told_at_s = {}
            self._broadcast.offer(self._files(rollout) if open_ else {})
        if not open_:
            return
        waiting = {device: step for device, step in progress.steps.items() if step.state in ("offered", "fetching")}
        now_s = time.monotonic()
        due = [device for device in waiting if now_s - self._told_at_s.get(device, -_SAY_AGAIN_S) >= _SAY_AGAIN_S]
        self._broadcast.expect(device for device in due if device not in self._told_at_s)
        for device in due:
            self._told_at_s[device] = now_s
            self._tell(device, self._offer_to(rollout, waiting[device]))

    def _files(self, rollout: Rollout) -> dict[str, Path]:
        files = {bundle.sha256: self._directory.release(bundle.sha256) for bundle in rollout.bundles}
        for path in files.values():
            if not path.is_file():
                _log.error("the bundle %s is gone: nothing can be sent of it", path)
        return {sha256: path for sha256, path in files.items() if path.is_file()}

    def _offer_to(self, rollout: Rollout, step: Step) -> ReleaseOffered:
        (bundle,) = (one for one in rollout.bundles if one.sha256 == step.bundle)
        return ReleaseOffered(
            run=self._run,
            rollout=rollout.id,
            sha256=bundle.sha256,
            size_bytes=bundle.size_bytes,
            name=bundle.name,
            number=bundle.number,
        )


def read_rollout(run: Path) -> Rollout | None:
    """Returns what the operator wishes; None where nothing was ever wished.

    Raises:
        StoreError: the document is damaged or cannot be read.
    """
    path = run / "update.json"
    return _read(path, Rollout) if path.exists() else None


def write_rollout(run: Path, rollout: Rollout) -> None:
    """Says what the operator wishes. Raises `StoreError` where that cannot be written."""
    _write(run / "update.json", rollout)


def read_progress(run: Path, rollout: Rollout) -> Progress:
    """Returns how far a rollout is; at its beginning where no aggregator has looked at it yet.

    Raises:
        StoreError: the document is damaged or cannot be read.
    """
    path = run / "update-progress.json"
    progress = _read(path, Progress) if path.exists() else Progress()
    return progress if progress.rollout == rollout.id else Progress(rollout=rollout.id)


def _kept_progress(directory: RunDirectory, now_unix_s: float) -> Progress:
    """Returns how far the aggregator before this one got. Nobody can have been silent while there was none."""
    path = directory.rollout_progress
    progress = _read(path, Progress) if path.exists() else Progress()
    steps = {
        device: step if step.over else replace(step, since_unix_s=now_unix_s) for device, step in progress.steps.items()
    }
    return replace(progress, steps=steps)


def candidate_of(sighting: Sighting, labels: dict[str, str]) -> Candidate:
    """Returns a device as far as a rollout is concerned."""
    state = sighting.state
    return Candidate(
        online=state is not None and state.status not in ("lost", "disconnected"),
        architecture=sighting.architecture,
        python=sighting.python,
        report=sighting.release,
        labels=labels,
    )


def _read(path: Path, kind: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {error}; remove it, and begin the update again") from error


def _write(path: Path, document: msgspec.Struct) -> None:
    try:
        replace_file(path, [msgspec.json.encode(document), b"\n"])
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; {MAKE_ROOM}") from error
