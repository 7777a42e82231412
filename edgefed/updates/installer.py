"""Installs releases: verify, build beside, try, and keep or go back.

What is on disk is at all times enough to go on. In the order of what is done::

    record.json         the release was begun once more
    environments/NEW    built, and complete
    trial.json          what is about to be tried
    venv.old, venv      the way back, then the switch            (a kill from here on ...
    venv.old            removed once the new agent is good        ... to here ends with the old one)
    record.json         what came of it
    trial.json, bundle  removed

The wrapper that starts this program, and the boot, take back what has a way back before anything of a new release runs;
so here there is none at the start, and what `trial.json` says was either kept or taken back already.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgefed.errors import DiskFull, UpdateError
from edgefed.files import remove_leftovers, sync_directory
from edgefed.logs import printable
from edgefed.updates.bundle import Bundle, open_bundle
from edgefed.updates.environments import Environments
from edgefed.updates.incoming import Incoming, opened
from edgefed.updates.places import Home, incoming
from edgefed.updates.record import (
    MAX_TRIES,
    Trial,
    read_record,
    read_trial,
    release_in_use,
    write_record,
    write_trial,
)
from edgefed.updates.release import Outcome, Result
from edgefed.updates.service import Service
from edgefed.updates.trial import Patience, failure, runs_in

if TYPE_CHECKING:
    from edgefed.security.signatures import Verifier

__all__ = ["Board", "Installer"]

_log = logging.getLogger(__name__)
_REMEMBERED = 50
"""So many releases that did not come up are remembered; each took an operator's signature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Whose updates these are.

    Attributes:
        home: where edgefed is installed.
        fleet: that the device belongs to.
        state: the agent's state directory, absolute.
        verifier: returns one that trusts the fleet's authority; raises `UpdateError` where nobody can be trusted.
    """

    home: Home
    fleet: str
    state: Path
    verifier: Callable[[], Verifier]


class Installer:
    """Installs what has come, one bundle after the other. Only one may be at work in a home: the wrapper sees to that.

    Args:
        board: whose updates these are.
        service: the agent's.
        patience: what a new agent is given to prove itself.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        board: Board,
        service: Service,
        patience: Patience,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._board = board
        self._home = board.home
        self._service = service
        self._patience = patience
        self._clock = clock
        self._environments = Environments(board.home)

    def run(self) -> None:
        """Closes a trial that was cut short, and installs what has come.

        Raises:
            UpdateError: this cannot go on here: a record that is damaged, a service manager that does not answer.
            OSError: a file of ours cannot be written.
        """
        self._home.updates.mkdir(mode=0o755, exist_ok=True)
        remove_leftovers(self._home.updates)
        trial = self._old_trial()
        with opened(incoming(self._board.state)) as directory:
            names = directory.names() if directory is not None else []
            if trial is not None:
                self._give_up(trial, comes_again=trial.file in names)
            if directory is not None:
                self._take_all(directory, names)

    def _old_trial(self) -> Trial | None:
        """Returns a trial that was cut short, once the agent of before runs again; closes one that had ended well."""
        trial = read_trial(self._home)
        if trial is None:
            return None
        if trial.environment == self._environments.in_use:
            self._close(trial, "installed")
            return None
        # The wrapper has gone back, and what still runs may be the new one. Where this program comes here again and
        # again, because the disk is full, say, the old one is left at its work.
        if not runs_in(self._service.state(), self._board.state, self._environments.in_use):
            self._service.restart()
        return trial

    def _give_up(self, trial: Trial, *, comes_again: bool) -> None:
        """Closes a trial that was cut short; where its bundle is tried again at once, there is nothing to say yet."""
        again = read_record(self._home).tries.get(trial.id, 0) < MAX_TRIES
        if again and comes_again:
            _log.warning("%s was cut short on trial, and is tried again", trial.release)
            self._forget_trial()
        else:
            self._close(trial, "rolled-back", "it was cut short before it was found good", again=again)

    def _take_all(self, directory: Incoming, names: Iterable[str]) -> None:
        for name in names:
            self._take(directory, name)
            directory.remove(name)

    def _take(self, directory: Incoming, name: str) -> None:
        """Installs one bundle from the agent's directory, or says why not."""
        trial = Trial(file=printable(name), began_unix_s=self._clock())  # a name may be any bytes, and be no text
        staged = self._home.updates / "staged"
        try:
            trial = replace(trial, bundle=directory.copy(name, staged))
        except UpdateError as error:
            self._close(trial, "refused", printable(str(error)), again=True)
        else:
            if not self._is_closed(trial):
                self._install(trial, staged)
        finally:
            staged.unlink(missing_ok=True)

    def _is_closed(self, trial: Trial) -> bool:
        """Whether what came of this very bundle is said already: it is here because removing it was cut short."""
        last = read_record(self._home).result
        return last is not None and (last.bundle, last.outcome, last.may_retry) == (trial.bundle, "rolled-back", False)

    def _install(self, trial: Trial, staged: Path) -> None:
        try:
            bundle = self._checked(staged)
        except UpdateError as error:
            self._close(trial, "refused", str(error).replace(str(staged), trial.file))
            return
        trial = replace(trial, id=bundle.id, release=bundle.release.name, number=bundle.release.number)
        if release_in_use(self._home) == bundle.document:
            self._close(trial, "installed")
            return
        tries = self._begin(trial)
        try:
            environment = self._environments.build(bundle)
        except DiskFull as error:
            self._count(trial, tries - 1)  # it is not the release's fault
            self._close(trial, "refused", str(error), again=True)
            return
        except UpdateError as error:
            self._close(trial, "refused", str(error), again=tries < MAX_TRIES)
            return
        self._try(replace(trial, environment=environment))

    def _checked(self, staged: Path) -> Bundle:
        """Returns a bundle that may be installed on this board."""
        bundle = open_bundle(staged, self._board.verifier(), fleet=self._board.fleet, now_unix_s=self._clock())
        record, release = read_record(self._home), bundle.release
        here = (platform.machine(), f"{sys.version_info[0]}.{sys.version_info[1]}")
        if (release.architecture, release.python) != here:
            raise UpdateError(
                f"release {release.name} is for {release.architecture} with Python {release.python}, and this is "
                f"{here[0]} with Python {here[1]}"
            )
        if bundle.id != record.latest:
            release.check_successor_of(record.highest_number)
        if record.tries.get(bundle.id, 0) >= MAX_TRIES:
            raise UpdateError(f"release {release.name} was tried before, and did not come up: it takes another number")
        return bundle

    def _begin(self, trial: Trial) -> int:
        """Counts that a release is begun, before anything of it can do harm, and returns how often it was by now."""
        tries = read_record(self._home).tries.get(trial.id, 0) + 1
        self._count(trial, tries)
        return tries

    def _count(self, trial: Trial, tries: int) -> None:
        record = read_record(self._home)
        others = {id_: count for id_, count in record.tries.items() if id_ != trial.id}
        kept = dict(list(others.items())[-_REMEMBERED:])
        write_record(self._home, replace(record, tries={**kept, trial.id: tries} if tries else kept))

    def _try(self, trial: Trial) -> None:
        _log.info("trying release %s in environment %s", trial.release, trial.environment)
        write_trial(self._home, trial)
        try:
            self._environments.try_out(trial.environment)
            self._service.restart()
            reason = failure(self._service, self._board.state, trial.environment, self._patience)
        except UpdateError as error:
            reason = str(error)
        if not reason:
            self._environments.keep()
            self._close(trial, "installed")
            return
        self._environments.recover()
        self._service.restart()
        self._close(trial, "rolled-back", reason)

    def _close(self, trial: Trial, outcome: Outcome, reason: str = "", *, again: bool = False) -> None:
        """Writes down what came of a bundle."""
        record = read_record(self._home)
        result = Result(
            bundle=trial.bundle,
            file=trial.file,
            release=trial.release,
            number=trial.number,
            outcome=outcome,
            reason=reason,
            may_retry=again,
            began_unix_s=trial.began_unix_s,
            ended_unix_s=self._clock(),
        )
        record = replace(record, result=result)
        if outcome == "installed":
            tries = {id_: count for id_, count in record.tries.items() if id_ != trial.id}
            highest = max(record.highest_number, trial.number)
            record = replace(record, tries=tries, highest_number=highest, latest=trial.id)
        elif outcome == "rolled-back" and not again:
            record = replace(record, tries={**record.tries, trial.id: MAX_TRIES})
        write_record(self._home, record)
        _log.log(*_message(result))
        if trial.environment:
            self._environments.prune()
            self._forget_trial()

    def _forget_trial(self) -> None:
        """Comes last: while there is a trial, this program is started again."""
        self._home.trial.unlink(missing_ok=True)
        sync_directory(self._home.updates)


def _message(result: Result) -> tuple[int, str, str, str, str]:
    level = logging.INFO if result.outcome == "installed" else logging.WARNING
    return level, "%s: %s %s", result.release or result.file, result.outcome, result.reason
