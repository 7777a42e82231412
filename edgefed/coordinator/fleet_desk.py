"""What the operator wants of the devices, who takes part, and which release of the agent each gets."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edgefed.coordinator import events
from edgefed.coordinator.broadcast import Broadcast
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.outbox import Outbox
from edgefed.coordinator.rollout_desk import RolloutDesk
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.sightings import Sightings
from edgefed.coordinator.steward import Steward
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Transport

__all__ = ["FleetDesk"]

_log = logging.getLogger(__name__)

_RELEASE_CHUNKS_IN_FLIGHT = 2
"""Few, so that what is more urgent does not queue behind them."""


class FleetDesk:
    """Keeps what is known of the devices, has the roster obeyed, and brings releases out.

    Args:
        options: what `federation.toml` says.
        run: id of this run.
        directory: of the run.
        ledger, outbox: the aggregator's.
        transport: connected.
        perform: carries out actions of the round machine.
        let_go: lets go of an upload of a device.
        gives_way: whether something is under way that is more urgent than a release.

    Attributes:
        sightings: what each device was heard of.
        releases: the broadcast of releases; runs in the background.

    Raises:
        StoreError: the roster cannot be read.
    """

    def __init__(
        self,
        options: FederationOptions,
        run: str,
        directory: RunDirectory,
        ledger: Ledger,
        outbox: Outbox,
        transport: Transport,
        *,
        perform: Callable[[tuple[events.Action, ...]], None],
        let_go: Callable[[str], None],
        gives_way: Callable[[], bool],
    ) -> None:
        topics = Topics(options.fleet)
        self.sightings = Sightings(directory)
        self.releases = Broadcast(
            transport,
            topics,
            chunk_bytes=options.transfers.chunk_bytes,
            settle_s=options.transfers.broadcast_settle_s,
            in_flight=_RELEASE_CHUNKS_IN_FLIGHT,
            gives_way=gives_way,
            gone=lambda path: _log.warning("the bundle %s is gone: nothing more is sent of it", path),
        )
        self._steward = Steward(run, topics, directory, ledger, outbox, self.sightings, perform=perform, let_go=let_go)
        self._rollouts = RolloutDesk(
            run,
            directory,
            signed=options.broker.signed,
            sightings=self.sightings,
            roster=lambda: self._steward.roster,
            broadcast=self.releases,
            tell=outbox.tell,
        )

    def begin(self) -> None:
        """Tells the devices and the round machine where each stands."""
        self._steward.begin()

    def look(self) -> None:
        """Obeys what the operator has said since the last look, and keeps what devices have said."""
        self._steward.look()
        self._rollouts.look()
        self.sightings.save(self._steward.busy)

    @property
    def rollout_may_take_s(self) -> float:
        """How long the release that devices are being offered may take at most; 0 where none is, or it is over."""
        return self._rollouts.may_take_s

    def show_again(self) -> None:
        """After a reconnect: a broker that was restarted may have forgotten what it had retained."""
        self._steward.show_again()

    def has_removed(self, device: str) -> bool:
        """Whether nothing more is wanted of a device."""
        return self._steward.has_removed(device)

    def close(self) -> None:
        """Keeps what devices have said, at once."""
        self.sightings.save(self._steward.busy, at_once=True)
