"""The agent: stays connected, joins rounds, has the worker train, and delivers. Light: no torch, no numpy.

One task reads what arrives and hands it on; another takes part in one round after the other. Whatever happens to the
worker, the broker or the aggregator, the supervisor goes on, and what was trained is kept on disk until acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from edgefed.agent.announcements import Announcements
from edgefed.agent.network_probe import NetworkProbe
from edgefed.agent.options import AgentOptions
from edgefed.agent.participation import Participation
from edgefed.agent.presence import Presence
from edgefed.agent.state_directory import StateDirectory
from edgefed.agent.worker_process import WorkerProcess
from edgefed.devices.profile import read_profile
from edgefed.errors import MessageError, TransportError
from edgefed.protocol.chunks import is_chunk
from edgefed.protocol.messages.down import Pong, decode_down
from edgefed.protocol.messages.retained import FederationFinished, RoundMessage, decode_round
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Connected, ConnectionLost, Message, Transport

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)


class Supervisor:
    """One device's agent.

    Args:
        options: what the owner said.
        transport: connected, with `presence.will` as its will.
        presence: this device's visible state.
        state: where things are kept.
        worker: who trains.
        leave_when_finished: return from `run` once the federation is over, instead of waiting for the next one.
    """

    def __init__(
        self,
        options: AgentOptions,
        transport: Transport,
        presence: Presence,
        state: StateDirectory,
        worker: WorkerProcess,
        *,
        leave_when_finished: bool = False,
    ) -> None:
        self._options = options
        self._topics = Topics(options.fleet)
        self._transport = transport
        self._presence = presence
        self._state = state
        self._worker = worker
        self._leave_when_finished = leave_when_finished
        self._board = Announcements()
        self._participation = Participation(options, transport, presence, state, worker, self._board)
        self._network = NetworkProbe(transport, self._topics, options.device)
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
                self._participation.ask_again()
                self._reappear()
            elif isinstance(event, ConnectionLost):
                _log.warning("connection to the broker lost: %s", event.reason)

    def _reappear(self) -> None:
        """After a reconnect: the broker has published the will, or was restarted and has forgotten everything."""

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
        elif message.topic == self._topics.round:
            if message.payload:
                self._board.post(decode_round(message.payload))
        elif message.topic == self._presence.topic:
            await self._presence.heard(self._transport, message.payload)
        elif not is_chunk(message.payload):
            answer = decode_down(message.payload)
            if isinstance(answer, Pong):
                self._network.hear(answer)
            else:
                self._participation.hear(answer)

    # --- one round after the other --------------------------------------------------------------------------------

    async def _take_part_in_rounds(self) -> None:
        await self._presence.claim(self._transport)
        await self._transport.subscribe(self._topics.device(self._options.device, "down"))
        await self._transport.subscribe(self._topics.round)
        await self._publish_profile()
        await self._presence.show(self._transport, "ready")
        while True:
            announced = await self._next_announcement()
            if isinstance(announced, FederationFinished):
                _log.info("the federation is over: %s", announced.reason)
                if self._leave_when_finished and self._state.knows(announced.run):
                    return  # an end that the broker kept from an earlier federation is not ours
                await self._presence.show(self._transport, "ready", note=f"finished: {announced.reason}")
            else:
                await self._participation.take_part(announced)

    async def _next_announcement(self) -> RoundMessage:
        """Returns the next announcement; a worker that has nothing to do meanwhile gives its memory back."""
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._board.next(), self._options.worker.idle_s)
        await self._worker.end()
        return await self._board.next()

    async def _publish_profile(self) -> None:
        limits = self._options.limits
        profile = read_profile(self._state.path, quantization=limits.quantization, max_rank=limits.max_rank)
        topic = self._topics.device(self._options.device, "profile")
        await self._transport.publish(topic, encode(profile), retain=True)
