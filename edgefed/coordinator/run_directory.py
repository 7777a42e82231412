"""Where an aggregator keeps a federation's files.

::

    <directory>/store.sqlite        journal, answers, merged rounds (edgefed.coordinator.store)
    <directory>/store.lock          locked while an aggregator is at work
    <directory>/store.mark          how many writes the store had taken, so that it cannot fall behind unnoticed
    <directory>/run.json            id and settings of the run, once more, for the day when the store is damaged
    <directory>/damaged-<n>/        what `edgefed store recover` has replaced
    <directory>/sealing.key         what updates are sealed for, with `sealed = true`; it is made for this run
    <directory>/roster.json         what the operator wants of each device; the command line writes it. A link, where
                                    several federations go by the same one
    <directory>/update.json, update-progress.json, releases/
                                    a release of the agent on its way over the fleet (edgefed.coordinator.rollout_desk)
    <directory>/devices.json        what was last heard of each device
    <directory>/profiles/<device>.json
    <directory>/history.jsonl       one line per round, for people and plots
    <directory>/incoming/<device>/  updates on their way
    <directory>/updates/            whole updates that wait for their merge
    <directory>/global/<n>/         the state after n merged rounds: exact values and broadcast parts
    <directory>/global/<n>.json     what vouches for it, should the store be lost
    <directory>/report.html         how well every device was used, once the federation is over
    <directory>/adapter/            the final global adapter, as PEFT loads it
    <directory>/adapter-best/       the one with the lowest evaluated loss
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgefed.errors import StoreError
from edgefed.files import in_shell, is_disk_trouble, remove_leftovers, sync_directory, sync_file, temporary_beside

__all__ = ["MAKE_ROOM", "RunDirectory", "damaged", "disk_trouble_told", "is_at_work"]

MAKE_ROOM = "make room and start the aggregator again: it goes on where it was, and nothing it acknowledged is lost"


def damaged(directory: Path, what: str) -> StoreError:
    """Returns the error for a run that is not what was written."""
    return StoreError(
        f"the store in {directory} is damaged: {what}; `edgefed store check {in_shell(directory)}` says what is whole, "
        "and how to go on from it"
    )


@contextlib.contextmanager
def disk_trouble_told(directory: Path) -> Iterator[None]:
    """Turns the operating system's word that the disk takes no more, or fails, into a message.

    Raises:
        StoreError: that came out of the block; other errors pass as they are.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_trouble(error):
            raise
        raise StoreError(f"the run directory {directory} cannot be written: {error}; {MAKE_ROOM}") from error


def is_at_work(directory: Path) -> bool:
    """Returns whether a process of this machine has a run directory; True where the kernel does not tell.

    It does not try the lock: an aggregator that starts at this moment would be refused.
    """
    try:
        inode = (directory / "store.lock").stat().st_ino
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except FileNotFoundError:
        return not Path("/proc/locks").exists()
    except OSError:
        return True
    return any("FLOCK" in lock and any(field.endswith(f":{inode}") for field in lock) for lock in held)


class RunDirectory:
    """The paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.incoming = path / "incoming"
        self.updates = path / "updates"
        self.states = path / "global"
        self.sealing_key = path / "sealing.key"
        self.roster = path / "roster.json"
        self.rollout = path / "update.json"
        self.rollout_progress = path / "update-progress.json"
        self._releases = path / "releases"
        self.sightings = path / "devices.json"
        self._profiles = path / "profiles"
        self.history = path / "history.jsonl"
        self.report = path / "report.html"
        self.adapter = path / "adapter"
        self.best_adapter = path / "adapter-best"
        for directory in (self.incoming, self.updates, self.states):
            directory.mkdir(parents=True, exist_ok=True)

    def profile(self, device: str) -> Path:
        """Where a device's profile is kept."""
        return self._profiles / f"{device}.json"

    def release(self, sha256: str) -> Path:
        """Where a bundle is kept while it is offered."""
        return self._releases / f"{sha256}.bundle"

    def state(self, merged_rounds: int) -> Path:
        """The state after so many merged rounds."""
        return self.states / str(merged_rounds)

    def record(self, rounds: int) -> Path:
        """The record of the round that a state came out of."""
        return self.states / f"{rounds}.json"

    def update(self, device: str, round_: int, sha256: str) -> Path:
        """Where an accepted update waits for its merge."""
        return self.updates / f"{device}-{round_}-{sha256[:16]}.safetensors"

    def take_update(self, arrived: Path, device: str, round_: int, sha256: str) -> Path:
        """Moves an update that has arrived to where it waits, durably, and returns that place."""
        path = self.update(device, round_, sha256)
        arrived.rename(path)
        sync_directory(self.updates)
        return path

    def remove_leftovers(self) -> None:
        """Removes half-written files and adapters that a kill left; only the aggregator itself may do so."""
        for directory in (self.path, self.states):
            remove_leftovers(directory)

    def copy_state(self, of: int, to: int) -> None:
        """Makes the state after `of` rounds that after `to` rounds as well, durably; whole or not at all."""
        target = self.state(to)
        fresh = temporary_beside(target)
        try:
            shutil.copytree(self.state(of), fresh)
            for path in fresh.iterdir():
                sync_file(path)
            sync_directory(fresh)
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        sync_directory(self.states)

    def drop_states(self, keep: Iterable[int]) -> None:
        """Removes all states but these, and what an interrupted merge left."""
        names = {str(number) for number in keep}
        for path in self.states.iterdir():
            if path.name.removesuffix(".json") in names:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def drop_updates(self, keep: Iterable[Path]) -> None:
        """Removes all updates but these."""
        kept = set(keep)
        for path in self.updates.iterdir():
            if path not in kept:
                path.unlink()
