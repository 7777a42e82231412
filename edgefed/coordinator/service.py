"""The aggregator: performs what the round machine decides, over a transport, everything durable before it is said.

One loop takes one thing at a time: a message, the end of a merge, an update that is whole, or a tick. The journal is
written first and acted upon afterwards, so after a kill the journal tells what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgefed.aggregation.exchange import Exchange
from edgefed.coordinator import events, rounds
from edgefed.coordinator.answers import MergedRound
from edgefed.coordinator.broadcast import Broadcast
from edgefed.coordinator.claim import FleetClaim
from edgefed.coordinator.client_budget import spent_by, with_privacy
from edgefed.coordinator.deliveries import Deliveries
from edgefed.coordinator.fleet_desk import FleetDesk
from edgefed.coordinator.global_adapters import GlobalAdapters
from edgefed.coordinator.inbox import Arrived, Broken, Inbox, Item, WorkDone
from edgefed.coordinator.intake import Intake
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.merging import RoundTraffic
from edgefed.coordinator.notices import Notices
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.outbox import Outbox
from edgefed.coordinator.reception import Reception
from edgefed.coordinator.refusals import Refusals
from edgefed.coordinator.round_records import write_record
from edgefed.coordinator.run_directory import RunDirectory, disk_trouble_told
from edgefed.coordinator.store import Store
from edgefed.coordinator.tenure import Tenure
from edgefed.errors import EdgefedError, FederationFailed, FleetTaken, MessageError
from edgefed.protocol.messages.down import Accepted, Refused
from edgefed.protocol.messages.retained import AggregatorState
from edgefed.protocol.tasks import ModelReference
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Connected, ConnectionLost, Distrusted, Message, Transport

if TYPE_CHECKING:
    from edgefed.security.sealing import SealingKey

__all__ = ["Aggregator"]

_log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 1.0
_LINGER_S = 2.0


class Aggregator:
    """One federation's aggregator.

    Args:
        options: what `federation.toml` says.
        model: the base model with its fingerprint.
        run: id of this run.
        instance: id of this process, which `transport`'s will has too.
        transport: connected, with `aggregator_will` as its will.
        store: of this run.
        exchange: of this federation's method.
        watch: called with each new state, for whoever shows it.
    """

    def __init__(
        self,
        options: FederationOptions,
        model: ModelReference,
        run: str,
        instance: str,
        transport: Transport,
        store: Store,
        exchange: Exchange,
        *,
        watch: Callable[[AggregatorState], None] | None = None,
    ) -> None:
        self._options = options
        self._run = run
        self._topics = Topics(options.fleet)
        self._transport = transport
        self._store = store
        self._directory = RunDirectory(store.directory)
        self._adapters = GlobalAdapters(options, store, self._directory, exchange)
        self._ledger = Ledger(store, options.rules)
        self._inbox = Inbox()
        self._outbox = Outbox(transport, self._topics)
        sealing = _sealing_key(self._directory.sealing_key) if options.broker.sealed else None
        public = "" if sealing is None else sealing.public
        self._notices = Notices(options, model, run, instance, self._outbox, watch=watch, sealing_key=public)
        self._tenure = Tenure(
            FleetClaim(options.fleet, run, instance),
            self._topics.aggregator_state,
            transport,
            self._inbox,
            overwritten=self._notices.forget_posted,
        )
        self._broadcast = Broadcast(
            transport,
            self._topics,
            chunk_bytes=options.transfers.chunk_bytes,
            settle_s=options.transfers.broadcast_settle_s,
        )
        self._intake = Intake(
            self._directory.incoming,
            options.transfers,
            tell=self._outbox.tell,
            arrived=lambda device, offer, path: self._inbox.post(Arrived(device, offer, path)),
            broke=lambda error: self._inbox.post(Broken(error)),
            max_payload_bytes=lambda: transport.max_payload_bytes,
        )
        self._fleet = FleetDesk(
            options,
            run,
            self._directory,
            self._ledger,
            self._outbox,
            transport,
            perform=self._perform,
            let_go=self._intake.give_up_on,
            gives_way=lambda: self._intake.busy or self._broadcast.busy,
        )
        self._refusals = Refusals(store)
        self._deliveries = Deliveries(
            options,
            model,
            run,
            store,
            self._ledger,
            exchange,
            self._directory,
            self._intake,
            self._refusals,
            tell=self._outbox.tell,
            perform=self._perform,
            sealing=sealing,
        )
        self._reception = Reception(
            options,
            model,
            run,
            self._ledger,
            self._deliveries,
            self._intake,
            (self._broadcast, self._fleet.releases),
            self._fleet.sightings,
            self._refusals,
            tell=self._outbox.tell,
            perform=self._perform,
            is_removed=self._fleet.has_removed,
        )
        self._traffic = RoundTraffic(lambda: self._intake.received_bytes, lambda: self._broadcast.sent_bytes)
        earlier = store.merged_rounds()
        self._earlier_received_bytes = sum(one.received_bytes for one in earlier)
        self._earlier_broadcast_bytes = sum(one.broadcast_bytes for one in earlier)
        self._epsilon = next((one.epsilon for one in reversed(earlier)), None)
        self._ticked_at_s = 0.0
        self._finished = False
        self._failure = ""

    async def run(self) -> str:
        """Runs the federation to its end, from wherever its journal stands, and returns why it ended.

        Raises:
            StoreError: the disk fails.
            TransportError: the broker refuses what the aggregator needs.
            AdapterError: a state on disk is damaged.
            FleetTaken: another aggregator serves the fleet.
            FederationFailed: it is over, and has not reached its last round or its target.
        """
        try:
            with disk_trouble_told(self._directory.path):
                await self._federate()
        except EdgefedError as error:
            self._failure = str(error)
            raise
        state = self._ledger.state
        if state.failed:
            raise FederationFailed(f"the federation has failed: {state.finished_reason}")
        return state.finished_reason

    async def _federate(self) -> None:
        for background in (
            partial(self._inbox.listen, self._transport),
            self._broadcast.run,
            self._fleet.releases.run,
            self._outbox.run,
        ):
            self._inbox.spawn(background)
        try:
            await self._adapters.begin(self._ledger.state)
            await self._tenure.take()
            await self._transport.subscribe(self._topics.every_device("up"))
            await self._transport.subscribe(self._topics.every_device("state"))
            await self._transport.subscribe(self._topics.every_device("profile"))
            self._perform(rounds.recover(self._ledger.state) or self._ledger.apply(events.Begin()))
            self._fleet.begin()
            while not self._finished:
                await self._turn()
            await self._linger()
            await self._see_the_rollout_through()
            self._fleet.close()
            await self._inbox.until(self._outbox.drained())
        finally:
            await self._inbox.close()
            await self._intake.close()

    def goodbye(self) -> AggregatorState | None:
        """Returns the state to leave behind when this process ends; None where the fleet is another aggregator's."""
        if not self._tenure.holds:
            return None
        state = self._describe()
        if self._finished:
            return state
        return msgspec.structs.replace(state, status="stopped", note=self._failure[:4096])

    # --- the loop -------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        wait_s = self._ledger.wait_s(_LONGEST_WAIT_S)
        item = await self._inbox.next(wait_s)
        if item is not None:
            await self._take(item)
        elif not wait_s:
            await asyncio.sleep(0.05)  # a deadline that is over, and a machine that waits for a device
        if item is None or time.monotonic() - self._ticked_at_s >= _LONGEST_WAIT_S:  # also where it is never quiet
            self._ticked_at_s = time.monotonic()
            self._perform(self._ledger.apply(events.Tick()))
            self._intake.give_up_on_the_stalled()
        self._fleet.look()
        self._notices.post_state(self._describe())

    async def _take(self, item: Item) -> None:
        if isinstance(item, Message):
            self._hear(item)
        elif isinstance(item, Distrusted):
            self._hear_of_distrust(item)
        elif isinstance(item, Arrived):
            await self._deliveries.take_in(item.device, item.offer, item.path)
        elif isinstance(item, WorkDone):
            self._after_work(item)
        elif isinstance(item, Broken):
            raise item.error
        elif isinstance(item, Connected):
            self._show_again()
        elif isinstance(item, ConnectionLost):
            _log.warning("connection to the broker lost: %s", item.reason)

    def _hear(self, message: Message) -> None:
        if message.topic == self._topics.aggregator_state:
            self._tenure.hear(message.payload)
            return
        try:
            self._reception.hear(message)
        except MessageError as error:
            _log.warning("on %s: %s", message.topic, error)

    def _hear_of_distrust(self, what: Distrusted) -> None:
        if what.topic == self._topics.aggregator_state:
            self._notices.forget_posted()  # it must not stand there as the broker's last word of us
        self._refusals.take_distrusted(self._topics, what, self._ledger.state.round)

    async def _linger(self) -> None:
        """Answers those who come a moment after the end."""
        self._notices.post_state(self._describe(), at_once=True)
        until_s = time.monotonic() + _LINGER_S
        while (left_s := until_s - time.monotonic()) > 0:
            if (item := await self._inbox.next(left_s)) is None:
                break
            await self._take(item)

    async def _see_the_rollout_through(self) -> None:
        """Stays while devices have a release in hand, unless that takes too long, or another aggregator begins."""
        self._fleet.look()
        if not self._fleet.rollout_may_take_s:
            return
        _log.info("a release is on its way to the devices: this aggregator stays until it is there")
        until_s = time.monotonic() + self._fleet.rollout_may_take_s
        self._tenure.yield_to_anybody()
        with contextlib.suppress(FleetTaken):  # the run of that one has a wish of its own, or none
            while self._fleet.rollout_may_take_s and time.monotonic() < until_s:
                await self._turn()

    # --- actions --------------------------------------------------------------------------------------------------

    def _perform(self, actions: tuple[events.Action, ...]) -> None:
        for action in actions:
            if isinstance(action, events.Announce):
                self._announce()
            elif isinstance(action, events.Accept):
                round_ = self._ledger.state.round
                self._broadcast.expect([action.device])
                accepted = Accepted(run=self._run, round=round_, remaining_s=action.remaining_s)
                self._outbox.tell(action.device, accepted)
            elif isinstance(action, events.Refuse):
                refused = Refused(run=self._run, round=self._ledger.state.round, reason=action.reason)
                self._outbox.tell(action.device, refused)
            elif isinstance(action, events.Merge):
                self._close_round(partial(self._adapters.merge, action, self._traffic))
            elif isinstance(action, events.GiveUp):
                self._close_round(partial(self._adapters.give_up, action, self._traffic))
            else:
                self._finish(action)

    def _announce(self) -> None:
        merged = self._adapters.after(self._ledger.state.round - 1)
        self._broadcast.offer(merged.files)
        state = self._ledger.state
        if state.phase == "gathering":  # else the round is called again, and goes on with the account that it has
            self._traffic = RoundTraffic(lambda: self._intake.received_bytes, lambda: self._broadcast.sent_bytes)
        self._notices.post_round(state, merged.manifest)
        about = {"round": state.round, "rounds": self._options.rounds, "kind": state.kind}
        final = state.kind == "evaluate"
        _log.info("the final evaluation is open" if final else "round %(round)d of %(rounds)d is open", about)

    def _show_again(self) -> None:
        """After a reconnect: a broker that was restarted may have forgotten what it had retained."""
        if self._tenure.yields:  # another aggregator may have begun meanwhile, and what it announced must stand
            return
        self._notices.forget_posted()
        self._fleet.show_again()
        state = self._ledger.state
        if state.round and state.phase in ("gathering", "training"):
            self._notices.post_round(state, self._adapters.after(state.round - 1).manifest)
        elif state.phase == "finished":
            self._notices.post_end(state.round, state.finished_reason)

    def _close_round(self, work: Callable[[], Coroutine[Any, Any, MergedRound | events.MergeFailed]]) -> None:
        async def report() -> None:
            await self._inbox.put(WorkDone(await work()))

        self._inbox.spawn(report)

    def _after_work(self, done: WorkDone) -> None:
        if isinstance(done.outcome, events.MergeFailed):
            self._perform(self._ledger.apply(done.outcome))
            return
        privacy = self._options.client_privacy
        earlier = self._store.merged_rounds() if privacy.noise_multiplier else []
        record = with_privacy(done.outcome, earlier, privacy)
        spent = spent_by(record, earlier, privacy)
        self._epsilon = record.epsilon
        self._refusals.take_merged(record)
        write_record(self._directory, record)
        self._perform(self._ledger.apply_merged(record, last_because=spent))
        self._adapters.settle(self._ledger.state)

    def _finish(self, end: events.Finish) -> None:
        state = self._ledger.state
        self._adapters.export(state)
        self._notices.post_end(state.round, end.reason)
        level = logging.ERROR if end.failed else logging.INFO
        _log.log(level, "the federation is over: %(reason)s", {"reason": end.reason})
        self._finished = True

    # --- what others see ------------------------------------------------------------------------------------------

    def _describe(self) -> AggregatorState:
        return self._notices.describe(
            self._ledger.state,
            refusals=self._refusals,
            received_bytes=self._earlier_received_bytes + self._intake.received_bytes,
            broadcast_bytes=self._earlier_broadcast_bytes + self._broadcast.sent_bytes,
            epsilon=self._epsilon,
        )


def _sealing_key(path: Path) -> SealingKey:
    from edgefed.security.sealing import SealingKey  # megabytes that others need not carry

    return SealingKey.read_or_make(path)
