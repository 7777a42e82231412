"""Having the worker do a round's work: progress shown, stopped when the round is over or the owner's rules say so.

Work that the owner's rules stop is suspended: the worker keeps what it has done in a file, and ends, so that the device
has its memory back. Once training is allowed again, the same work goes on from there, in a new worker if need be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from edgefed.agent.announcements import Announcements, RoundIsOver
from edgefed.agent.eligibility import Guard
from edgefed.agent.frames import Finished, Progress, Work
from edgefed.agent.presence import Presence
from edgefed.agent.worker_process import WorkCancelled, WorkerProcess
from edgefed.devices.sampling import SAMPLE_S, Sampler
from edgefed.devices.usage import HardwareUse
from edgefed.devices.usage_sums import joined
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.training.round_work import RoundWork, WorkSuspended
from edgefed.transport.base import Transport
from edgefed.waiting import wait_at_most

__all__ = ["SupervisedWork"]

_log = logging.getLogger(__name__)

_CANCEL_PATIENCE_S = 60.0
_SENSOR_PATIENCE_S = 5.0


class _Forbidden(Exception):
    """The owner's rules stopped the work; the message says why."""


class SupervisedWork:
    """Does work, one piece at a time.

    Args:
        transport: connected.
        presence: where progress is shown.
        worker: who trains.
        board: which round is in force; work for another one is abandoned.
        guard: the owner's rules.
        new_sampler: makes what looks at the hardware during one piece of work.
    """

    def __init__(
        self,
        transport: Transport,
        presence: Presence,
        worker: WorkerProcess,
        board: Announcements,
        guard: Guard,
        new_sampler: Callable[[], Sampler],
    ) -> None:
        self._transport = transport
        self._presence = presence
        self._worker = worker
        self._board = board
        self._guard = guard
        self._new_sampler = new_sampler

    async def until_allowed(self, announced: RoundOpen, *, stopped: bool = False) -> None:
        """Returns once the owner's rules allow training; shows why they do not.

        Raises:
            RoundIsOver: the round closed first.
        """
        if not (found := self._guard.objections(stopped=stopped)):
            return
        about = {"round": announced.round, "reason": "; ".join(found)}
        _log.info("round %(round)d: sleeping: %(reason)s", about)
        await self._presence.show(self._transport, "sleeping", round=announced.round, note="; ".join(found))
        await self._board.while_open(announced, self._guard.until_allowed(stopped=stopped))

    async def do(self, announced: RoundOpen, work: RoundWork) -> Finished:
        """Returns the worker's answer with the hardware's use, however often the owner's rules interrupt it.

        Raises:
            RoundIsOver: the federation went on without it.
            EdgefedError: as `WorkerProcess.work`.
        """
        windows: list[HardwareUse] = []
        while True:
            await self._presence.show(self._transport, "training", round=announced.round)
            sampler = self._new_sampler()
            looking = asyncio.create_task(_look(sampler), name="look-at-hardware")
            try:
                finished = await self._uninterrupted(announced, work)
            except _Forbidden as reason:
                _log.warning("round %(round)d: %(reason)s", {"round": announced.round, "reason": reason})
                windows += await _finish(sampler)
            else:
                windows += await _finish(sampler)
                use = joined(windows) if windows else None
                return Finished(record=msgspec.structs.replace(finished.record, use=use))
            finally:
                looking.cancel()
            await self._worker.end()
            await self.until_allowed(announced, stopped=True)

    async def _uninterrupted(self, announced: RoundOpen, work: RoundWork) -> Finished:
        reports: asyncio.Queue[Progress] = asyncio.Queue()
        showing = asyncio.create_task(self._show_progress(reports), name="show-progress")
        stopping = asyncio.create_task(self._suspend_when_forbidden(), name="suspend-when-forbidden")
        doing = asyncio.ensure_future(self._worker.work(Work(work=work), reports.put_nowait))
        watched = self._board.while_run if announced.late_is_used else self._board.while_open
        try:
            return await watched(announced, asyncio.shield(doing))
        except RoundIsOver:
            await self._worker.cancel()  # at its next step, so that it stays warm
            await asyncio.wait({doing}, timeout=_CANCEL_PATIENCE_S)
            raise
        except WorkCancelled as cancelled:
            raise RoundIsOver(str(cancelled)) from cancelled
        except WorkSuspended as suspended:
            raise _Forbidden(f"stopped, because {await stopping}: {suspended}") from None
        finally:
            for task in (showing, stopping, doing):
                task.cancel()
            await asyncio.gather(showing, stopping, doing, return_exceptions=True)

    async def _suspend_when_forbidden(self) -> str:
        """Returns why, once the worker has been asked to suspend."""
        reason = await self._guard.until_forbidden()
        await self._worker.suspend()
        return reason

    async def _show_progress(self, reports: asyncio.Queue[Progress]) -> None:
        while True:
            report = await reports.get()
            about = {"stage": report.stage, "step": report.step, "steps": report.steps}
            _log.debug("%(stage)s: step %(step)d of %(steps)d", about)
            await self._presence.progress(
                self._transport, step=report.step, steps=report.steps, loss=report.loss, note=report.stage
            )


async def _look(sampler: Sampler) -> None:
    """Looks in a thread: a driver that hangs must not take the connection to the broker with it."""
    while True:
        await asyncio.to_thread(sampler.look)
        await asyncio.sleep(SAMPLE_S)


async def _finish(sampler: Sampler) -> list[HardwareUse]:
    """Returns the window, or none where a sensor's driver hangs, which must not cost the update."""
    try:
        return [await wait_at_most(asyncio.to_thread(sampler.finish), _SENSOR_PATIENCE_S)]
    except asyncio.TimeoutError:
        _log.warning("a sensor has not answered for %g s: what it saw is lost", _SENSOR_PATIENCE_S)
        return []
