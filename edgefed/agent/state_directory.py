"""What a device keeps on disk, so that nothing is lost when the agent, or the board, is killed.

::

    <state>/agent.lock                        one agent per directory
    <state>/health.json                       whether the agent is connected; see `updates.health`
    <state>/updates/                          a release on its way; see `updater`
    <state>/updates/incoming/                 releases that have come; see `updates.places`
    <state>/plans.json                        what came of earlier plans
    <state>/privacy.json                      the privacy that was spent; see `privacy_ledger`
    <state>/parts/<sha256>                    rank layers of the global adapter, and .part files on their way
    <state>/runs/<run>/residual.safetensors   what rounding lost from the updates that counted so far
    <state>/runs/<run>/update-<round>.safetensors, offer-<round>.json
                                              a finished update that the aggregator has not acknowledged yet
    <state>/runs/<run>/update-<round>.safetensors.residual
                                              what rounding will have lost, if that update counts

The offer is written last, whole and synced: where there is an offer there is an update. It is removed last but for the
update itself, so that a device that was killed while it tidied up asks once more what became of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from edgefed.errors import ConfigError, MessageError
from edgefed.files import remove_leftovers, replace_file, sync_directory
from edgefed.protocol.messages.up import EvaluationReport, UpdateOffer, decode_up
from edgefed.protocol.messages.wire import encode
from edgefed.training.round_work import residual_beside

__all__ = ["StateDirectory"]

_log = logging.getLogger(__name__)


class StateDirectory:
    """An agent's directory, held by one process at a time.

    Raises:
        ConfigError: it cannot be made or written, or another agent holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = path / "parts"
        self._runs = path / "runs"
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self._runs.mkdir(exist_ok=True)
            self._lock = os.open(path / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"state: the directory {path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigError(
                f"state: another agent uses the directory {path}; each agent on a machine needs its own"
            ) from None

        runs = [run for run in self._runs.iterdir() if run.is_dir()]
        for directory in (self.path, self.parts, *runs):
            remove_leftovers(directory)
        for run in runs:
            _drop_unoffered(run)

    def close(self) -> None:
        """Lets another agent have it."""
        os.close(self._lock)

    def knows(self, run: str) -> bool:
        """Whether this device has taken part in a run."""
        return (self._runs / run).is_dir()

    def residual(self, run: str) -> Path:
        """Where the rounding residual of the updates that counted is kept."""
        return self._run(run) / "residual.safetensors"

    def update(self, run: str, round_: int) -> Path:
        """Where the update of a round is kept until it is acknowledged."""
        return self._run(run) / f"update-{round_}.safetensors"

    def save_offer(self, offer: UpdateOffer | EvaluationReport) -> None:
        """Keeps an answer until it is acknowledged; survives a power cut once this returns."""
        replace_file(self._offer(offer.run, offer.round), [encode(offer)])

    def offers(self, run: str) -> list[UpdateOffer | EvaluationReport]:
        """Returns the answers of a run that wait for an acknowledgement, oldest first; damaged ones are left out."""
        found: list[UpdateOffer | EvaluationReport] = []
        for path in self._run(run).glob("offer-*.json"):
            try:
                message = decode_up(path.read_bytes())
            except MessageError as error:
                about = {"path": path.relative_to(self.path), "error": error}
                _log.warning("%(path)s is left aside: %(error)s; the update that it offers is not sent", about)
                continue
            if isinstance(message, EvaluationReport) or (
                isinstance(message, UpdateOffer) and self.update(run, message.round).is_file()
            ):
                found.append(message)
        return sorted(found, key=lambda message: message.round)

    def settle(self, run: str, round_: int, *, used: bool) -> None:
        """Drops an answer that was acknowledged, and its update.

        Args:
            run: of the answer.
            round_: of the answer.
            used: whether the update is in a sum or will be. Only then the next one must make up for what rounding
                took from it; an update that nobody used leaves no debt.
        """
        update = self.update(run, round_)
        residual = residual_beside(update)
        if not used:
            residual.unlink(missing_ok=True)
        elif residual.is_file():  # else an earlier call, cut short by a kill, has moved it
            residual.replace(self.residual(run))
            sync_directory(residual.parent)
        for path in (self._offer(run, round_), update):
            path.unlink(missing_ok=True)

    def keep_only(self, run: str, parts: Iterable[str]) -> None:
        """Deletes what belongs to other runs, and rank layers whose hash is not among `parts`."""
        for other in self._runs.iterdir():
            if other.name != run:
                shutil.rmtree(other, ignore_errors=True)
        wanted = set(parts)
        for file in self.parts.iterdir():
            if file.name.partition(".")[0] not in wanted:
                with contextlib.suppress(OSError):
                    file.unlink()

    def _offer(self, run: str, round_: int) -> Path:
        return self._run(run) / f"offer-{round_}.json"

    def _run(self, run: str) -> Path:
        path = self._runs / run
        path.mkdir(exist_ok=True)
        return path


def _drop_unoffered(run: Path) -> None:
    """Removes updates, and their residuals, that a kill left without an offer; suspended training stays."""
    for path in (*run.glob("update-*.safetensors"), *run.glob("update-*.safetensors.residual")):
        round_ = path.name.removeprefix("update-").partition(".")[0]
        if not (run / f"offer-{round_}.json").is_file():
            path.unlink()
