"""Whether the files of a run are what was written: states by their digests, updates that wait by their hashes.

The store vouches for itself row by row (`Store.check`); what lies beside it, it vouches for here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from edgefed.coordinator.digests import directory_digest
from edgefed.coordinator.events import EvaluationReceived, GivenUp, Merged, Update, UpdateReceived
from edgefed.coordinator.round_state import State
from edgefed.coordinator.run_directory import RunDirectory, damaged
from edgefed.coordinator.store import Store
from edgefed.files import hash_file

__all__ = ["check_account", "check_files", "check_states", "check_updates", "state_trouble", "update_trouble"]


def state_trouble(path: Path, digest: str) -> str:
    """Returns what is wrong with a state's directory, "" where it is whole.

    Args:
        path: of the directory.
        digest: that it had when it was made; "" where nobody knows, and it cannot be vouched for.
    """
    try:
        found = directory_digest(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if not digest:
        return f"nothing vouches for {path}"
    return "" if found == digest else f"a file in {path} is not what was written"


def update_trouble(directory: RunDirectory, update: Update) -> str:
    """Returns what is wrong with an update that waits for its sum, "" where it is whole."""
    path = directory.update(update.device, update.round, update.sha256)
    try:
        found = hash_file(path)
    except OSError as error:
        return f"the update {path} cannot be read: {error.strerror}"
    return "" if found == (update.kept_sha256 or update.sha256) else f"the update {path} is not what was accepted"


def check_states(directory: RunDirectory, digests: Mapping[int, str]) -> None:
    """Looks at states, by number, with the digests that they had.

    Raises:
        StoreError: one is not what was written.
    """
    _refuse(directory, (state_trouble(directory.state(number), digest) for number, digest in digests.items()))


def check_updates(directory: RunDirectory, updates: Iterable[Update]) -> None:
    """Looks at updates that wait for their sum.

    Raises:
        StoreError: one is not what was accepted.
    """
    _refuse(directory, (update_trouble(directory, update) for update in updates))


def check_account(store: Store) -> None:
    """Looks whether each entry of the journal still has what was written together with it.

    Raises:
        StoreError: an answer or the record of a round is gone.
    """
    answered = {(one.round, one.device, one.sha256) for one in store.answers()}
    over = {one.round for one in store.merged_rounds()}
    for event, _ in store.journal():
        gone = ""
        if isinstance(event, Merged | GivenUp) and event.round not in over:
            gone = f"the record of round {event.round}"
        elif isinstance(event, EvaluationReceived) and (event.round, event.device, "") not in answered:
            gone = f"{event.device}'s evaluation of round {event.round}"
        elif isinstance(event, UpdateReceived):
            one = event.update
            gone = "" if (one.round, one.device, one.sha256) in answered else f"{one.device}'s answer in {one.round}"
        if gone:
            raise damaged(store.directory, f"{gone} is gone")


def check_files(store: Store, directory: RunDirectory, state: State) -> None:
    """Looks at all that a federation may still need of what it has.

    Raises:
        StoreError: something is not what was written.
    """
    kept = {int(path.name) for path in directory.states.iterdir() if path.name.isdecimal()}
    last = store.last_round
    needed = {last} if last or store.start is not None else set()
    # A state beyond the last round is what a kill has left of a merge, which is made again.
    numbers = {number for number in kept if number <= last} | needed
    if not last and store.start is None:  # the first start was cut short: nobody has seen what it made
        numbers = set()
    check_states(directory, {number: store.state_digest(number) for number in sorted(numbers)})
    check_updates(directory, (*state.updates, *state.carried, *state.waiting))


def _refuse(directory: RunDirectory, troubles: Iterable[str]) -> None:
    for trouble in troubles:
        if trouble:
            raise damaged(directory.path, trouble)
