"""The operator's wishes, obeyed: notices what the roster says, has the round machine know, and tells the devices."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edgefed.coordinator import events
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.outbox import Outbox
from edgefed.coordinator.roster import Entry, Roster, RosterWatch, read_roster, why_held
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.sightings import Sightings
from edgefed.errors import StoreError
from edgefed.protocol.messages.down import Standing
from edgefed.protocol.topics import Topics

__all__ = ["Steward"]

_log = logging.getLogger(__name__)


class Steward:
    """Stands between the roster and the rounds.

    Args:
        run: id of this run.
        topics: of the fleet.
        directory: of the run.
        ledger, outbox, sightings: the aggregator's.
        perform: carries out actions of the round machine.
        let_go: lets go of an upload of a device.

    Raises:
        StoreError: the roster cannot be read.
    """

    def __init__(
        self,
        run: str,
        topics: Topics,
        directory: RunDirectory,
        ledger: Ledger,
        outbox: Outbox,
        sightings: Sightings,
        *,
        perform: Callable[[tuple[events.Action, ...]], None],
        let_go: Callable[[str], None],
    ) -> None:
        self._run = run
        self._topics = topics
        self._ledger = ledger
        self._outbox = outbox
        self._sightings = sightings
        self._perform = perform
        self._let_go = let_go
        self._roster = read_roster(directory.roster)
        self._watch = RosterWatch(directory.roster)

    def begin(self) -> None:
        """Tells every device in the roster where it stands, and the machine, where it does not know that yet."""
        for device, entry in sorted(self._roster.devices.items()):
            self._tell(device, entry)
        self._apply(self._roster)

    def look(self) -> None:
        """Obeys what the roster says, where that is another than before. One that is damaged changes nothing."""
        try:
            roster = self._watch.look()
        except StoreError as error:
            _log.error("%s; the last one that could be read holds", error)
            return
        if roster is None:
            return
        before, self._roster = self._roster, roster
        self._apply(roster)
        for device in sorted({*before.devices, *roster.devices}):
            if why_held(roster.entry(device)) != why_held(before.entry(device)):
                _log.info("device %s: %s", device, why_held(roster.entry(device)) or "active again")
                self._tell(device, roster.entry(device))

    def show_again(self) -> None:
        """After a reconnect: a broker that was restarted may have forgotten what it had retained."""
        for device, entry in sorted(self._roster.devices.items()):
            self._tell(device, entry)

    @property
    def roster(self) -> Roster:
        """The one that is obeyed."""
        return self._roster

    def has_removed(self, device: str) -> bool:
        """Whether nothing more is wanted of a device. What it retains at the broker is then taken away."""
        removed = self._roster.entry(device).duty == "removed"
        if removed:
            self._clear(device)
        return removed

    def busy(self) -> frozenset[str]:
        """Returns the devices that the aggregator waits for, or still takes an update of."""
        state = self._ledger.state
        owing = (device for _, device in state.owed if self._sightings.is_at_work(device))
        return frozenset((*state.candidates, *state.outstanding, *owing))

    def _apply(self, roster: Roster) -> None:
        if roster.held == self._ledger.state.held:
            return
        self._perform(self._ledger.apply(events.RosterRead(roster.held)))
        for device, duty in roster.held:
            if duty == "removed":
                self._let_go(device)

    def _tell(self, device: str, entry: Entry) -> None:
        standing = Standing(run=self._run, duty=entry.duty, reason=why_held(entry))
        self._outbox.post(self._topics.device(device, "down"), standing)
        if entry.duty == "removed":
            self._clear(device)

    def _clear(self, device: str) -> None:
        self._sightings.forget(device)
        self._outbox.clear(self._topics.device(device, "state"))
        self._outbox.clear(self._topics.device(device, "profile"))
