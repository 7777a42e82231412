"""The agent: stays connected, joins rounds, has the worker train, and delivers. Light: no torch, no numpy.

One task reads what arrives and hands it on; another takes part in one round after the other. Whatever happens to the
worker, the broker or the aggregator, the supervisor goes on, and what was trained is kept on disk until acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import msgspec

from edgefed.agent.announcements import Announcements
from edgefed.agent.network_probe import NetworkProbe
from edgefed.agent.options import AgentOptions
from edgefed.agent.participation import Participation
from edgefed.agent.planning import Planning
from edgefed.agent.presence import Presence
from edgefed.agent.privacy_ledger import PrivacyLedger
from edgefed.agent.profiler import Profiler
from edgefed.agent.state_directory import StateDirectory
from edgefed.agent.updater import Updater
from edgefed.agent.worker_process import WorkerProcess
from edgefed.devices.instruments import Instruments
from edgefed.devices.sampling import Sampler
from edgefed.errors import MessageError, TransportError
from edgefed.protocol.chunks import is_chunk
from edgefed.protocol.messages.down import Pong, ReleaseOffered, Standing, decode_down
from edgefed.protocol.messages.retained import FederationFinished, RoundMessage, decode_round
from edgefed.protocol.messages.up import UpMessage
from edgefed.protocol.messages.wire import encode, is_signed
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Connected, ConnectionLost, Message, Transport
from edgefed.updates.health import HealthFile
from edgefed.updates.places import Home
from edgefed.waiting import wait_at_most

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)

_UNHEARD = (
    "this fleet's announcements are signed, and nobody listens to a device that does not sign: set signed = true in "
    "[broker] of its agent.toml, with the certificate that `edgefed fleet enroll` makes"
)


class Supervisor:
    """One device's agent.

    Args:
        options: what the owner said.
        transport: connected, with `presence.will` as its will.
        presence: this device's visible state.
        state: where things are kept.
        worker: who trains.
        instruments: the machine's sensors.
        health: where it is shown whether there is a connection.
        home: where this agent is installed; None where no installer looks after it.
        leave_when_finished: return from `run` once the federation is over, instead of waiting for the next one.
    """

    def __init__(
        self,
        options: AgentOptions,
        transport: Transport,
        presence: Presence,
        state: StateDirectory,
        worker: WorkerProcess,
        instruments: Instruments,
        health: HealthFile,
        *,
        home: Home | None = None,
        leave_when_finished: bool = False,
    ) -> None:
        self._options = options
        self._topics = Topics(options.fleet)
        self._transport = transport
        self._presence = presence
        self._state = state
        self._worker = worker
        self._instruments = instruments
        self._health = health
        self._leave_when_finished = leave_when_finished
        self._board = Announcements()
        self._network = NetworkProbe(transport, self._topics, options.device)
        self._profiler = Profiler(options, state.path, worker, self._network, instruments=instruments)
        planning = Planning(options.limits, self._profiler.profile, state.path / "plans.json")
        ledger = PrivacyLedger(options.privacy, state.path / "privacy.json")
        yardstick = self._profiler.yardstick
        self._participation = Participation(
            options, transport, presence, state, worker, self._board, planning, ledger, yardstick, self._new_sampler
        )
        self._updater = Updater(
            options,
            transport,
            state.path,
            home,
            send=self._send,
            publish=self._publish_profile,
            idle=lambda: presence.state.status in ("init", "ready", "sleeping"),
        )
        self._aside = ""  # why this device takes part in nothing
        self._tried: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Takes part in rounds until cancelled, or until the federation is over.

        Raises:
            DeviceIdTaken: another live agent uses this device id.
            TransportError: the broker refuses what the agent needs.
        """
        reader = asyncio.create_task(self._read(), name="read")
        rounds = asyncio.create_task(self._take_part_in_rounds(), name="rounds")
        try:
            done, _ = await asyncio.wait({reader, rounds}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (reader, rounds, *self._tasks):
                task.cancel()
            await asyncio.gather(reader, rounds, *self._tasks, return_exceptions=True)
            await self._updater.end()
            await self._worker.end()

    # --- what arrives ---------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        async for event in self._transport.events():
            if isinstance(event, Message):
                try:
                    await self._hear(event)
                except MessageError as error:
                    _log.warning("on %s: %s", event.topic, error)
            elif isinstance(event, Connected):
                self._health.connected()
                self._participation.ask_again()
                self._updater.ask_again()
                self._reappear()
            elif isinstance(event, ConnectionLost):
                self._health.disconnected()
                self._participation.interrupt()
                _log.warning("connection to the broker lost: %s", event.reason)
            elif event.topic == self._presence.topic:
                self._reappear()  # what somebody else says of this device must not stand there

    def _reappear(self) -> None:
        """Says again what the broker has lost: it has published the will, or forgotten all, or keeps a forgery."""
        if not self._presence.has_claimed:  # the id may be another's, and what the broker keeps of that one is right
            return

        async def publish() -> None:
            with contextlib.suppress(TransportError):
                await self._presence.publish(self._transport)
                await self._publish_profile()

        task = asyncio.ensure_future(publish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hear(self, message: Message) -> None:
        if self._topics.is_blob(message.topic):
            self._participation.receive(message.payload)
            self._updater.receive(message.payload)
        elif message.topic == self._topics.round:
            await self._hear_announcement(message.payload)
        elif message.topic == self._presence.topic:
            if await self._presence.heard(self._transport, message.payload):
                self._reappear()  # what another agent has said of this device, its profile too, must not stand there
        elif not is_chunk(message.payload):
            answer = decode_down(message.payload)
            if isinstance(answer, Pong):
                self._network.hear(answer)
            elif isinstance(answer, Standing):
                if self._board.stand(answer):
                    self._reappear()  # what the broker retained of a device that was removed is gone
            elif isinstance(answer, ReleaseOffered):
                self._updater.hear(answer)
            else:
                self._participation.hear(answer)

    async def _hear_announcement(self, payload: bytes) -> None:
        if not payload:
            return
        if is_signed(payload) and not self._options.broker.signed:
            if not self._aside:
                self._aside = _UNHEARD
                _log.warning("%s", self._aside)
                await self._presence.show(self._transport, "ready", note=self._aside)
            return
        if self._board.post(decode_round(payload)):
            self._participation.say_again()

    # --- one round after the other --------------------------------------------------------------------------------

    async def _take_part_in_rounds(self) -> None:
        await self._presence.claim(self._transport)
        await self._transport.subscribe(self._topics.device(self._options.device, "down"))
        await self._transport.subscribe(self._topics.round)
        await self._publish_profile()
        await self._know_the_machine()
        await self._presence.show(self._transport, "ready", note=self._aside)
        self._updater.begin()
        while True:
            announced = await self._next_announcement()
            if isinstance(announced, FederationFinished):
                _log.info("the federation is over: %(reason)s", {"reason": announced.reason})
                if self._leave_when_finished and self._state.knows(announced.run):
                    return  # an end that the broker kept from an earlier federation is not ours
                await self._presence.show(self._transport, "ready", note=f"finished: {announced.reason}")
            else:
                await self._know_the_way(announced.run)
                await self._participation.take_part(announced)

    async def _next_announcement(self) -> RoundMessage:
        """Returns the next announcement.

        Meanwhile the machine is looked at now and then, and a worker that has nothing to do gives its memory back.
        """
        recheck_s, idle_s, waited_s = self._options.profile.recheck_s, self._options.worker.idle_s, 0.0
        while True:
            wait_s = min(recheck_s, idle_s - waited_s) if waited_s < idle_s else recheck_s
            with contextlib.suppress(asyncio.TimeoutError):
                return await wait_at_most(self._board.next(), wait_s)
            waited_s += wait_s
            if waited_s >= idle_s:
                await self._worker.end()
            await self._know_the_machine()

    # --- the device itself ----------------------------------------------------------------------------------------

    def _new_sampler(self) -> Sampler:
        return Sampler(
            lambda: self._worker.pid,
            instruments=self._instruments,
            hardware=self._profiler.hardware,
            root=Path(self._options.root),
        )

    async def _know_the_machine(self) -> None:
        """Measures what has changed since it was last measured, and publishes the profile where something has."""
        quick = self._options.profile.measure == "quick"
        reasons = self._profiler.reasons_to_measure()
        if reasons:
            _log.info("measuring this machine: %s", "; ".join(reasons))
            await self._presence.show(self._transport, "init", note="measuring this machine")
            await self._profiler.measure(quick=quick)
            await self._presence.show(self._transport, "ready", note=self._aside)
        network = await asyncio.to_thread(self._profiler.network_is_due)
        if network:
            await self._profiler.measure_network(quick=quick)
        if reasons or network:
            await self._publish_profile()

    async def _know_the_way(self, run: str) -> None:
        """Measures the network when a federation begins, if there was no aggregator to measure it with before."""
        if run not in self._tried and await asyncio.to_thread(self._profiler.network_is_due):
            await self._profiler.measure_network(quick=True)
            await self._publish_profile()
        self._tried = {run}

    async def _publish_profile(self) -> None:
        topic = self._topics.device(self._options.device, "profile")
        profile = msgspec.structs.replace(self._profiler.profile(), release=self._updater.state)
        await self._transport.publish(topic, encode(profile), retain=True)

    async def _send(self, message: UpMessage) -> None:
        await self._transport.publish(self._topics.device(self._options.device, "up"), encode(message))
