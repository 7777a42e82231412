"""The aggregator: performs what the round machine decides, over a transport, everything durable before it is said.

One loop takes one thing at a time: a message, the end of a merge, an update that is whole, or a tick. The journal is
written first and acted upon afterwards, so after a kill the journal tells what to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgefed.aggregation.exchange import Exchange
from edgefed.coordinator import events, rounds
from edgefed.coordinator.between_rounds import BetweenRounds, WorkDone
from edgefed.coordinator.broadcast import Broadcast
from edgefed.coordinator.claim import ANSWER_S, CLAIM_S, FleetClaim
from edgefed.coordinator.client_budget import spent_by, with_privacy
from edgefed.coordinator.history import extend_history, write_history
from edgefed.coordinator.intake import Intake
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.merging import RoundTraffic, tidy
from edgefed.coordinator.notices import Notices
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.outbox import Outbox
from edgefed.coordinator.reception import Reception
from edgefed.coordinator.round_records import write_record
from edgefed.coordinator.run_directory import RunDirectory, disk_trouble_told
from edgefed.coordinator.store import Store
from edgefed.errors import EdgefedError, FederationFailed, MessageError
from edgefed.protocol.messages.down import Accepted, Refused
from edgefed.protocol.messages.retained import AggregatorState
from edgefed.protocol.messages.up import UpdateOffer
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.tasks import ModelReference
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Connected, ConnectionLost, Event, Message, Transport

if TYPE_CHECKING:
    from edgefed.security.sealing import SealingKey

__all__ = ["Aggregator"]

_log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 1.0
_LINGER_S = 2.0


@dataclass(frozen=True, slots=True)
class _Arrived:
    device: str
    offer: UpdateOffer
    path: Path


@dataclass(frozen=True, slots=True)
class _Broken:
    error: BaseException


class Aggregator:
    """One federation's aggregator.

    Args:
        options: what `federation.toml` says.
        model: the base model with its fingerprint.
        run: id of this run.
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
        self._exchange = exchange
        self._directory = RunDirectory(store.directory)
        self._ledger = Ledger(store, options.rules)
        self._inbox: asyncio.Queue[Event | _Arrived | WorkDone | _Broken] = asyncio.Queue(maxsize=256)
        self._work = BetweenRounds(options, exchange, self._directory, store)
        self._outbox = Outbox(transport, self._topics)
        sealing = _sealing_key(self._directory.sealing_key) if options.broker.sealed else None
        public = "" if sealing is None else sealing.public
        self._notices = Notices(options, model, run, self._outbox, watch=watch, sealing_key=public)
        self._claim = FleetClaim(options.fleet, run, self._notices.instance)
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
            arrived=lambda device, offer, path: self._spawn(self._inbox.put(_Arrived(device, offer, path))),
            broke=lambda error: self._spawn(self._inbox.put(_Broken(error))),
            max_payload_bytes=lambda: transport.max_payload_bytes,
        )
        self._reception = Reception(
            options,
            model,
            run,
            store,
            self._ledger,
            exchange,
            self._directory,
            self._intake,
            self._broadcast,
            tell=self._outbox.tell,
            perform=self._perform,
            sealing=sealing,
        )
        self._traffic = RoundTraffic(lambda: self._intake.received_bytes, lambda: self._broadcast.sent_bytes)
        self._epsilon = next((one.epsilon for one in reversed(store.merged_rounds())), None)
        self._tasks: set[asyncio.Task[None]] = set()
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
        for background in (self._pump(), self._broadcast.run(), self._outbox.run()):
            self._spawn(background)
        try:
            await self._work.begin(self._ledger.state)
            await self._take_the_fleet()
            await self._transport.subscribe(self._topics.every_device("up"))
            await self._transport.subscribe(self._topics.every_device("state"))
            self._perform(rounds.recover(self._ledger.state) or self._ledger.apply(events.Begin()))
            while not self._finished:
                await self._turn()
            await self._linger()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._intake.close()

    def goodbye(self) -> AggregatorState | None:
        """Returns the state to leave behind when this process ends; None where the fleet is another aggregator's."""
        if not self._claim.holds:
            return None
        state = self._describe()
        if self._finished:
            return state
        return msgspec.structs.replace(state, status="stopped", note=self._failure[:4096] or state.note)

    async def _take_the_fleet(self) -> None:
        """Looks at what the broker keeps of an aggregator before saying anything."""
        await self._transport.subscribe(self._topics.aggregator_state)
        until_s = time.monotonic() + CLAIM_S
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                item = await asyncio.wait_for(self._inbox.get(), left_s)
            except asyncio.TimeoutError:
                break
            if isinstance(item, _Broken):
                await self._take(item)
            if isinstance(item, Message) and item.topic == self._topics.aggregator_state:
                heard = self._hear_of_an_aggregator(item.payload)
                if heard == "vacant":
                    break
                if heard == "doubtful":
                    await self._transport.publish(item.topic, encode(self._claim.challenge()))
                    until_s = time.monotonic() + ANSWER_S
        self._claim.take()

    def _hear_of_an_aggregator(self, payload: bytes) -> Literal["own", "vacant", "doubtful"]:
        """Replaces a word on our topic that is not ours: the last one of a process or a connection that is gone."""
        heard: Literal["own", "vacant", "doubtful"] = "vacant"
        try:
            heard = self._claim.hear(payload) if payload else "vacant"
        except MessageError as error:
            _log.warning("on %s: %s", self._topics.aggregator_state, error)
        if heard == "vacant":
            self._notices.forget_posted()
        return heard

    # --- the loop -------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        wait_s = self._ledger.wait_s(_LONGEST_WAIT_S)
        try:
            item = await asyncio.wait_for(self._inbox.get(), wait_s) if wait_s else self._inbox.get_nowait()
        except (asyncio.TimeoutError, asyncio.QueueEmpty):
            self._perform(self._ledger.apply(events.Tick()))
            self._intake.give_up_on_the_stalled()
            if not wait_s:
                await asyncio.sleep(0.05)  # a deadline that is over, and a machine that waits for a device
        else:
            await self._take(item)
        self._notices.post_state(self._describe())

    async def _take(self, item: Event | _Arrived | WorkDone | _Broken) -> None:
        if isinstance(item, Message) and item.topic == self._topics.aggregator_state:
            self._hear_of_an_aggregator(item.payload)
        elif isinstance(item, Message):
            try:
                self._reception.hear(item)
            except MessageError as error:
                _log.warning("on %s: %s", item.topic, error)
        elif isinstance(item, _Arrived):
            await self._reception.take_in(item.device, item.offer, item.path)
        elif isinstance(item, WorkDone):
            self._after_work(item)
        elif isinstance(item, _Broken):
            raise item.error
        elif isinstance(item, Connected):
            self._show_again()
        elif isinstance(item, ConnectionLost):
            _log.warning("connection to the broker lost: %s", item.reason)

    async def _pump(self) -> None:
        async for event in self._transport.events():
            await self._inbox.put(event)

    def _spawn(self, doing: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await doing
            except Exception as error:  # noqa: BLE001 - the task boundary: the loop raises it
                await self._inbox.put(_Broken(error))

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _linger(self) -> None:
        """Answers those who come a moment after the end."""
        self._notices.post_state(self._describe(), at_once=True)
        until_s = time.monotonic() + _LINGER_S
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                await self._take(await asyncio.wait_for(self._inbox.get(), left_s))
            except asyncio.TimeoutError:
                break
        await self._outbox.drained()

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
                self._spawn(self._report(self._work.merge(action, self._traffic)))
            elif isinstance(action, events.GiveUp):
                self._spawn(self._report(self._work.give_up(action, self._traffic)))
            else:
                self._finish(action)

    def _announce(self) -> None:
        merged = self._exchange.load(self._directory.state(self._ledger.state.round - 1))
        self._broadcast.offer(merged.files)
        self._traffic = RoundTraffic(lambda: self._intake.received_bytes, lambda: self._broadcast.sent_bytes)
        state = self._ledger.state
        self._notices.post_round(state, merged.manifest)
        _log.info("round %d of %d is open (%s)", state.round, self._options.rounds, state.kind)

    def _show_again(self) -> None:
        """After a reconnect: a broker that was restarted may have forgotten what it had retained."""
        self._notices.forget_posted()
        state = self._ledger.state
        if state.round and state.phase in ("gathering", "training"):
            self._notices.post_round(state, self._exchange.load(self._directory.state(state.round - 1)).manifest)
        elif state.phase == "finished":
            self._notices.post_end(state.round, state.finished_reason)

    async def _report(self, work: Coroutine[Any, Any, WorkDone]) -> None:
        await self._inbox.put(await work)

    def _after_work(self, done: WorkDone) -> None:
        if isinstance(done.outcome, events.MergeFailed):
            self._perform(self._ledger.apply(done.outcome))
            return
        privacy, earlier = self._options.client_privacy, self._store.merged_rounds()
        record = with_privacy(done.outcome, earlier, privacy)
        spent = spent_by(record, earlier, privacy)
        self._epsilon = record.epsilon
        self._reception.refusals.take_merged(record)
        write_record(self._directory, record)
        self._perform(self._ledger.apply_merged(record, last_because=spent))
        extend_history(self._directory.history, self._store, self._ledger.state)
        tidy(self._directory, self._options.selection, self._ledger.state, self._store.last_round)

    def _finish(self, end: events.Finish) -> None:
        state = self._ledger.state
        write_history(self._directory.history, self._store, state)
        self._work.export(state)
        self._notices.post_end(state.round, end.reason)
        _log.log(logging.ERROR if end.failed else logging.INFO, "the federation is over: %s", end.reason)
        self._finished = True

    # --- what others see ------------------------------------------------------------------------------------------

    def _describe(self) -> AggregatorState:
        return self._notices.describe(
            self._ledger.state,
            refusals=self._reception.refusals,
            received_bytes=self._intake.received_bytes,
            broadcast_bytes=self._broadcast.sent_bytes,
            epsilon=self._epsilon,
        )


def _sealing_key(path: Path) -> SealingKey:
    from edgefed.security.sealing import SealingKey  # megabytes that others need not carry

    return SealingKey.read_or_make(path)
