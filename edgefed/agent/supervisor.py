"""The agent: stays connected, joins rounds, has the worker train, and delivers. Light: no torch, no numpy.

One task reads what arrives and hands it on; another takes part in one round after the other. Whatever happens to the
worker, the broker or the aggregator, the supervisor goes on, and what was trained is kept on disk until acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import msgspec

from edgefed.agent.announcements import Announcements, RoundIsOver
from edgefed.agent.downloads import Downloads, Fetched
from edgefed.agent.frames import Finished, Prepare, Prepared, Progress, Work
from edgefed.agent.options import AgentOptions
from edgefed.agent.plan import CannotTakePart, parts_to_fetch, plan_round
from edgefed.agent.presence import Presence
from edgefed.agent.state_directory import StateDirectory
from edgefed.agent.uploads import Uploads
from edgefed.agent.worker_process import WorkCancelled, WorkerProcess
from edgefed.devices.profile import read_profile
from edgefed.errors import EdgefedError, MessageError, TransportError
from edgefed.files import hash_file
from edgefed.protocol.chunks import is_chunk
from edgefed.protocol.messages import (
    Accepted,
    Decline,
    EvaluationReport,
    FederationFinished,
    Join,
    Plan,
    Refused,
    RoundMessage,
    RoundOpen,
    UpdateOffer,
    UpMessage,
    decode_down,
    decode_round,
    encode,
)
from edgefed.protocol.topics import Topics
from edgefed.training.round_work import RoundWork
from edgefed.transport.base import Connected, ConnectionLost, Message, Transport

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)

_JOIN_PATIENCE_S = 15.0
_CANCEL_PATIENCE_S = 60.0
_TIME_MARGIN = 1.2


class _NotSelected(Exception):
    """The aggregator refused this device for the round, or for good; the message says why."""


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
        self._downloads = Downloads(transport, self._topics, self._send, state.parts)
        self._uploads = Uploads(transport, self._topics.device(options.device, "up"), self._send)
        self._board = Announcements()
        self._answers: asyncio.Queue[Accepted | Refused] = asyncio.Queue()
        self._done: set[tuple[str, int]] = set()
        self._last_work_s: dict[Plan, float] = {}
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
                self._downloads.ask_again()
                self._uploads.ask_again()
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
            self._downloads.receive(message.payload)
        elif message.topic == self._topics.round:
            if message.payload:
                self._board.post(decode_round(message.payload))
        elif message.topic == self._presence.topic:
            await self._presence.heard(self._transport, message.payload)
        elif not is_chunk(message.payload):
            answer = decode_down(message.payload)
            if isinstance(answer, Accepted | Refused):
                self._answers.put_nowait(answer)
            else:
                self._uploads.hear(answer)

    async def _send(self, message: UpMessage) -> None:
        await self._transport.publish(self._topics.device(self._options.device, "up"), encode(message))

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
                await self._take_part(announced)

    async def _next_announcement(self) -> RoundMessage:
        """Returns the next announcement; a worker that has nothing to do meanwhile gives its memory back."""
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._board.next(), self._options.worker.idle_s)
        await self._worker.end()
        return await self._board.next()

    async def _take_part(self, announced: RoundOpen) -> None:
        note = ""
        try:
            self._state.keep_only(announced.run, (part.sha256 for part in announced.manifest.parts))
            for left_over in self._state.offers(announced.run):
                await self._deliver(announced, left_over)
            if (announced.run, announced.round) not in self._done:
                offer = await self._do_round(announced)
                await self._deliver(announced, offer)
        except RoundIsOver as over:
            note = str(over)
        except _NotSelected as refusal:
            note = f"round {announced.round}: {refusal}"
        except (CannotTakePart, EdgefedError) as reason:
            note = f"round {announced.round}: {reason}"
            self._done.add((announced.run, announced.round))
            await self._send(Decline(run=announced.run, round=announced.round, reason=str(reason)[:4096]))
        if note:
            _log.warning("%s", note)
        await self._presence.show(self._transport, "ready", round=announced.round, note=note[:4096])

    async def _do_round(self, announced: RoundOpen) -> UpdateOffer | EvaluationReport:
        """Returns the device's answer to a round, kept on disk."""
        plan = plan_round(announced, self._options.limits)
        prepared = await self._board.while_open(announced, self._prepare(announced))
        remaining_s = await self._board.while_open(announced, self._join(announced, plan, prepared))
        self._check_time(plan, remaining_s)
        await self._presence.show(self._transport, "downloading", round=announced.round)
        fetching = self._downloads.fetch(announced.run, parts_to_fetch(announced.manifest, plan))
        fetched = await self._board.while_open(announced, fetching)
        started_s = time.monotonic()
        finished = await self._work(announced, plan, fetched)
        self._last_work_s[plan] = time.monotonic() - started_s
        return await self._keep_answer(announced, plan, prepared, fetched, finished)

    async def _prepare(self, announced: RoundOpen) -> Prepared:
        request = Prepare(round=announced, data=self._options.data, models=self._options.models)
        prepared = await self._worker.prepare(request)
        wanted = announced.model.fingerprint
        if wanted and prepared.fingerprint != wanted:
            raise CannotTakePart(
                f"the base model at {prepared.model_path} is not the federation's {announced.model.name!r}: "
                f"its fingerprint is {prepared.fingerprint[:16]}…, and {wanted[:16]}… is wanted"
            )
        return prepared

    async def _join(self, announced: RoundOpen, plan: Plan, prepared: Prepared) -> float:
        """Returns the seconds that are left, once the aggregator has taken this device in."""
        await self._presence.show(self._transport, "ready", round=announced.round, note="waiting to be selected")
        join = Join(
            run=announced.run,
            round=announced.round,
            plan=plan,
            fingerprint=prepared.fingerprint,
            model=announced.model.name,
            examples=prepared.examples,
        )
        while True:
            await self._send(join)
            with contextlib.suppress(asyncio.TimeoutError):
                answer = await asyncio.wait_for(self._answer_to(announced), _JOIN_PATIENCE_S)
                if isinstance(answer, Refused):
                    raise _NotSelected(answer.reason)
                return answer.remaining_s

    async def _answer_to(self, announced: RoundOpen) -> Accepted | Refused:
        while True:
            answer = await self._answers.get()
            if (answer.run, answer.round) == (announced.run, announced.round):
                return answer

    def _check_time(self, plan: Plan, remaining_s: float) -> None:
        """Does not start what cannot be finished: it would cost energy and count for nothing."""
        needed_s = self._last_work_s.get(plan, 0.0) * _TIME_MARGIN
        if needed_s > remaining_s:
            raise CannotTakePart(f"{remaining_s:.0f} s are left, and this device needed {needed_s:.0f} s last time")

    async def _work(self, announced: RoundOpen, plan: Plan, fetched: Fetched) -> Finished:
        work = RoundWork(
            announced=announced,
            device=self._options.device,
            data=self._options.data,
            models=self._options.models,
            plan=plan,
            parts=[str(path) for path in fetched.paths],
            output=str(self._state.update(announced.run, announced.round)),
            residual=str(self._state.residual(announced.run)),
            threads=self._options.limits.threads,
            hardware=self._options.worker.device,
        )
        await self._presence.show(self._transport, "training", round=announced.round)
        reports: asyncio.Queue[Progress] = asyncio.Queue()
        showing = asyncio.create_task(self._show_progress(reports), name="show-progress")
        work_task = asyncio.ensure_future(self._worker.work(Work(work=work), reports.put_nowait))
        watched = self._board.while_run if announced.late_is_used else self._board.while_open
        try:
            return await watched(announced, asyncio.shield(work_task))
        except RoundIsOver:
            await self._worker.cancel()  # at its next step, so that it stays warm
            await asyncio.wait({work_task}, timeout=_CANCEL_PATIENCE_S)
            raise
        except WorkCancelled as cancelled:
            raise RoundIsOver(str(cancelled)) from cancelled
        finally:
            for task in (showing, work_task):
                task.cancel()
            await asyncio.gather(showing, work_task, return_exceptions=True)

    async def _show_progress(self, reports: asyncio.Queue[Progress]) -> None:
        while True:
            report = await reports.get()
            await self._presence.progress(
                self._transport, step=report.step, steps=report.steps, loss=report.loss, note=report.stage
            )

    async def _keep_answer(
        self, announced: RoundOpen, plan: Plan, prepared: Prepared, fetched: Fetched, finished: Finished
    ) -> UpdateOffer | EvaluationReport:
        record = msgspec.structs.replace(
            finished.record, download_bytes=fetched.received_bytes, download_s=fetched.fetch_s
        )
        answer: UpdateOffer | EvaluationReport
        if announced.kind == "evaluate":
            answer = EvaluationReport(run=announced.run, round=announced.round, record=record)
        else:
            path = self._state.update(announced.run, announced.round)
            size_bytes = path.stat().st_size
            answer = UpdateOffer(
                run=announced.run,
                round=announced.round,
                sha256=await asyncio.to_thread(hash_file, path),
                size_bytes=size_bytes,
                plan=plan,
                fingerprint=prepared.fingerprint,
                model=announced.model.name,
                examples=prepared.examples,
                record=msgspec.structs.replace(record, upload_bytes=size_bytes),
            )
        await asyncio.to_thread(self._state.save_offer, answer)
        return answer

    async def _deliver(self, announced: RoundOpen, answer: UpdateOffer | EvaluationReport) -> None:
        await self._presence.show(self._transport, "uploading", round=answer.round)
        path = self._state.update(answer.run, answer.round) if isinstance(answer, UpdateOffer) else None
        word = await self._board.while_run(announced, self._uploads.deliver(answer, path))
        self._state.forget(answer.run, answer.round)
        self._done.add((answer.run, answer.round))
        level = logging.INFO if word.outcome in ("counted", "late") else logging.WARNING
        _log.log(level, "round %d: %s %s", answer.round, word.outcome, word.reason)

    async def _publish_profile(self) -> None:
        limits = self._options.limits
        profile = read_profile(self._state.path, quantization=limits.quantization, max_rank=limits.max_rank)
        topic = self._topics.device(self._options.device, "profile")
        await self._transport.publish(topic, encode(profile), retain=True)
