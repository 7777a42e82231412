"""One device's part in a round: join it, fetch what it needs, have the worker train, keep the answer, deliver it.

What was trained is kept on disk until the aggregator has acknowledged it, so an answer that a kill or a lost connection
left behind is delivered before anything new is begun.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import msgspec

from edgefed.agent.announcements import Announcements, RoundIsOver
from edgefed.agent.board_keeper import Yardstick
from edgefed.agent.downloads import Downloads, Fetched
from edgefed.agent.eligibility import Guard
from edgefed.agent.frames import Finished, Prepare, Prepared
from edgefed.agent.joining import Joining, NotSelected
from edgefed.agent.neighbours import count_other_agents, tell_whose_energy
from edgefed.agent.options import AgentOptions
from edgefed.agent.plan import CannotTakePart, parts_to_fetch
from edgefed.agent.planning import Planned, Planning
from edgefed.agent.presence import Presence
from edgefed.agent.privacy_ledger import PrivacyLedger
from edgefed.agent.room import Room, is_lack_of_room
from edgefed.agent.sealed_updates import check_sealing, seal_update
from edgefed.agent.state_directory import StateDirectory
from edgefed.agent.supervised_work import SupervisedWork
from edgefed.agent.uploads import Uploads
from edgefed.agent.work_times import OutOfTime, WorkTimes
from edgefed.agent.worker_process import WorkerProcess
from edgefed.devices.conditions import read_conditions
from edgefed.devices.sampling import Sampler
from edgefed.errors import DataError, DiskFull, Diverged, EdgefedError, WorkerDied, WorkerError, WorkerOutOfMemory
from edgefed.files import hash_file
from edgefed.protocol.messages.down import Accepted, Refused, RoundAnswer
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.messages.up import Decline, EvaluationReport, Join, UpdateOffer, UpMessage
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.records import RoundRecord
from edgefed.protocol.tasks import Quantization
from edgefed.protocol.topics import Topics
from edgefed.training.round_work import RoundWork
from edgefed.transport.base import Transport

__all__ = ["Participation"]

_log = logging.getLogger(__name__)

_MOST_PLANS = 8
"""Plans that are tried in one round, each a notch below the one that ran out of memory."""


class Participation:
    """Takes part in rounds, one at a time.

    Args:
        options: what the owner said.
        transport: connected.
        presence: where this device's status is shown.
        state: where answers, rank layers and the residual are kept.
        worker: who trains.
        board: which round is in force; work for another one is abandoned.
        planning: decides what this device takes on.
        ledger: of the privacy that its examples have left.
        yardstick: returns what the work with a base of some precision is related to.
        new_sampler: makes what looks at the hardware during one piece of work.
    """

    def __init__(
        self,
        options: AgentOptions,
        transport: Transport,
        presence: Presence,
        state: StateDirectory,
        worker: WorkerProcess,
        board: Announcements,
        planning: Planning,
        ledger: PrivacyLedger,
        yardstick: Callable[[Quantization], Yardstick],
        new_sampler: Callable[[], Sampler],
    ) -> None:
        topics = Topics(options.fleet)
        self._options = options
        self._transport = transport
        self._presence = presence
        self._state = state
        self._worker = worker
        self._board = board
        self._planning = planning
        self._ledger = ledger
        self._yardstick = yardstick
        guard = Guard(options.eligibility, partial(read_conditions, Path(options.root)))
        self._supervised = SupervisedWork(transport, presence, worker, board, guard, new_sampler)
        self._up = topics.device(options.device, "up")
        self._room = Room(transport, presence, board, state.path, state.parts)
        self._downloads = Downloads(transport, topics, self._send, state.parts)
        self._uploads = Uploads(transport, self._up, self._send)
        self._joining = Joining(self._send)
        self._done: set[tuple[str, int, str]] = set()  # with the kind: a last look may be followed by more rounds
        self._work_times = WorkTimes()

    # --- what arrives for it --------------------------------------------------------------------------------------

    def hear(self, message: RoundAnswer) -> None:
        """Takes what the aggregator says to this device."""
        if isinstance(message, Accepted | Refused):
            self._joining.hear(message)
        else:
            self._uploads.hear(message)

    def receive(self, chunk: bytes) -> None:
        """Takes a chunk of the broadcast."""
        self._downloads.receive(chunk)

    def interrupt(self) -> None:
        """The connection is gone: an upload under way stops, and goes on where the aggregator says."""
        self._uploads.interrupt()

    def ask_again(self) -> None:
        """After a reconnect: what was on its way, in either direction, may be gone."""
        self._downloads.ask_again()
        self._uploads.ask_again()

    def say_again(self) -> None:
        """The open round was announced again: a restarted aggregator does not know who asked to join, or offered."""
        self._joining.ask_again()
        self._uploads.ask_again()

    async def _send(self, message: UpMessage) -> None:
        await self._transport.publish(self._up, encode(message))

    # --- a round --------------------------------------------------------------------------------------------------

    async def take_part(self, announced: RoundOpen) -> None:
        """Does what this device can do for a round, and returns when there is nothing left to do for it."""
        note = shown = ""
        try:
            check_sealing(self._options, announced)
            while not await self._answered(announced):
                _log.info("round %d: once more, from the start", announced.round)
            note = self._board.why_held(announced.run)
        except RoundIsOver as over:
            note = str(over)
        except NotSelected as refusal:
            note = f"round {announced.round}: {refusal}"
        except OutOfTime as reason:  # not done with the round: announced again, it has a new deadline
            note = f"round {announced.round}: {reason}"
            await self._send(Decline(run=announced.run, round=announced.round, reason=str(reason)))
        except (CannotTakePart, EdgefedError) as reason:
            _log.warning("round %d: %s", announced.round, reason)
            told = _fit_to_leave(reason)
            shown = f"round {announced.round}: {told}"
            diverged = isinstance(reason, Diverged)
            if diverged or not isinstance(reason, WorkerError):  # else the next worker may do better, if called again
                self._done.add((announced.run, announced.round, announced.kind))
            await self._send(Decline(run=announced.run, round=announced.round, reason=told[:4096], diverged=diverged))
        if note:
            _log.warning("%s", note)
        await self._presence.show(self._transport, "ready", round=announced.round, note=(note or shown)[:4096])

    async def _answered(self, announced: RoundOpen) -> bool:
        """Returns whether this device is done with the round; not so where the disk was full, and has room again."""
        try:
            self._state.keep_only(announced.run, (part.sha256 for part in announced.manifest.parts))
            for left_over in self._state.offers(announced.run):
                await self._deliver(announced, left_over)
            held = self._board.why_held(announced.run)
            if not held and (announced.run, announced.round, announced.kind) not in self._done:
                await self._supervised.until_allowed(announced)
                await self._room.until_there_is(announced)
                offer = await self._do_round(announced)
                self._room.was_enough()
                await self._deliver(announced, offer)
        except (OSError, DiskFull) as error:
            if not is_lack_of_room(error):
                raise
            reason = f"the disk takes no more: {error}"
            await self._send(Decline(run=announced.run, round=announced.round, reason=reason[:4096]))
            await self._room.after(announced, error)
            return False
        return True

    async def _do_round(self, announced: RoundOpen) -> UpdateOffer | EvaluationReport:
        """Returns the device's answer to a round, kept on disk; a plan that memory does not hold is lowered."""
        prepared = await self._board.while_open(announced, self._prepare(announced))
        until_s: float | None = None
        died = False
        for _ in range(_MOST_PLANS):
            planned = await asyncio.to_thread(
                self._planning.plan, announced, Path(prepared.model_path), prepared.training_set
            )
            if until_s is None:
                joining = self._join(announced, planned.plan, prepared)
                until_s = time.monotonic() + await self._board.while_open(announced, joining)
            self._work_times.check(planned.plan, until_s - time.monotonic())
            try:
                return await self._do_planned(announced, planned, prepared)
            except WorkerOutOfMemory as error:
                if planned.candidate is None:  # it rests on the owner's word alone: there is nothing to lower
                    raise
                about = {"round": announced.round, "error": error}
                _log.warning("round %(round)d: %(error)s; planning a notch lower", about)
                await asyncio.to_thread(self._planning.ran_out, planned)
            except WorkerDied as error:
                if died:
                    raise
                died = True
                about = {"round": announced.round, "error": error}
                _log.warning("round %(round)d: %(error)s; trying once more", about)
        raise CannotTakePart(f"memory ran out with {_MOST_PLANS} plans, each lower than the one before")

    async def _do_planned(
        self, announced: RoundOpen, planned: Planned, prepared: Prepared
    ) -> UpdateOffer | EvaluationReport:
        await self._presence.show(self._transport, "downloading", round=announced.round)
        fetching = self._downloads.fetch(announced.run, parts_to_fetch(announced.manifest, planned.plan))
        fetched = await self._board.while_open(announced, fetching)
        finished = await self._work(announced, planned.plan, fetched)
        self._work_times.took(planned.plan, _worked_s(finished.record))
        await asyncio.to_thread(self._planning.succeeded, planned, finished.record)
        return await self._keep_answer(announced, planned, prepared, fetched, finished)

    async def _prepare(self, announced: RoundOpen) -> Prepared:
        spent = self._ledger.spent(announced.run)
        request = Prepare(round=announced, data=self._options.data, models=self._options.models, spent=spent)
        prepared = await self._worker.prepare(request)
        wanted = announced.model.fingerprint
        if wanted and prepared.fingerprint != wanted:
            raise CannotTakePart(
                f"the base model at {prepared.model_path} is not the federation's {announced.model.name!r}: "
                f"its fingerprint is {prepared.fingerprint[:16]}…, and {wanted[:16]}… is wanted"
            )
        self._ledger.check(announced, prepared.privacy)
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
            examples=prepared.training_set.examples,
        )
        return await self._joining.join(join)

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
        return await self._supervised.do(announced, work)

    async def _keep_answer(
        self, announced: RoundOpen, planned: Planned, prepared: Prepared, fetched: Fetched, finished: Finished
    ) -> UpdateOffer | EvaluationReport:
        plan = planned.plan
        record = msgspec.structs.replace(
            self._ledger.described(planned.described(finished.record), announced, prepared.privacy),
            download_bytes=fetched.received_bytes,
            download_s=fetched.fetch_s,
            **asdict(self._yardstick(plan.quantization)),
        )
        if record.use is not None:
            others = await asyncio.to_thread(count_other_agents, Path(self._options.root))
            use = tell_whose_energy(record.use, emulated=record.emulated, others=others)
            record = msgspec.structs.replace(record, use=use)
        answer: UpdateOffer | EvaluationReport
        if announced.kind == "evaluate":
            answer = EvaluationReport(run=announced.run, round=announced.round, record=record)
        else:
            path = self._state.update(announced.run, announced.round)
            await asyncio.to_thread(seal_update, self._options, announced, path)
            size_bytes = path.stat().st_size
            answer = UpdateOffer(
                run=announced.run,
                round=announced.round,
                sha256=await asyncio.to_thread(hash_file, path),
                size_bytes=size_bytes,
                plan=plan,
                fingerprint=prepared.fingerprint,
                model=announced.model.name,
                examples=prepared.training_set.examples,
                record=msgspec.structs.replace(record, upload_bytes=size_bytes),
                sealed_for=announced.sealing_key,
            )
        if prepared.privacy is not None:
            await asyncio.to_thread(self._ledger.charge, announced.run, prepared.privacy)
        await asyncio.to_thread(self._state.save_offer, answer)
        return answer

    async def _deliver(self, announced: RoundOpen, answer: UpdateOffer | EvaluationReport) -> None:
        await self._presence.show(self._transport, "uploading", round=answer.round)
        path = self._state.update(answer.run, answer.round) if isinstance(answer, UpdateOffer) else None
        word = await self._board.while_run(announced, self._uploads.deliver(answer, path))
        used = word.outcome in ("counted", "late")
        self._state.settle(answer.run, answer.round, used=used)
        self._done.add((answer.run, answer.round, "train" if isinstance(answer, UpdateOffer) else "evaluate"))
        level = logging.INFO if used else logging.WARNING
        about = {"round": answer.round, "outcome": word.outcome, "reason": word.reason}
        _log.log(level, "round %(round)d: %(outcome)s %(reason)s", about)


def _worked_s(record: RoundRecord) -> float:
    """Returns the worker's own seconds: how long a link was down in the meantime says nothing of the next round."""
    evaluated_s = record.evaluation.evaluate_s if record.evaluation else 0.0
    return record.load_s + evaluated_s + record.train_s


def _fit_to_leave(reason: Exception) -> str:
    """Returns why this device declines, in words that may be read by others: of its examples, nothing is told."""
    if isinstance(reason, DataError):
        return "its examples cannot be used: its own log, and `edgefed doctor` there, say what is wrong and where"
    return str(reason)
