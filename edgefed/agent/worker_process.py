"""The supervisor's handle on the worker: start it, ask it, notice when it died, hung or babbles, end it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from edgefed.agent.frames import (
    MAX_FRAME_BYTES,
    Answer,
    Bench,
    Benched,
    Cancel,
    Failed,
    Finished,
    Prepare,
    Prepared,
    Probe,
    Probed,
    Progress,
    Suspend,
    Work,
    decode_answer,
    encode_frame,
)
from edgefed.agent.worker_output import PrintedLines
from edgefed.devices.memory import count_oom_kills
from edgefed.errors import (
    AdapterError,
    ConfigError,
    DataError,
    DiskFull,
    Diverged,
    ModelError,
    WorkerDied,
    WorkerError,
    WorkerOutOfMemory,
)
from edgefed.training.round_work import WorkSuspended
from edgefed.waiting import wait_at_most

__all__ = ["WORKER_COMMAND", "WorkCancelled", "WorkerProcess"]

WORKER_COMMAND = (sys.executable, "-m", "edgefed.agent.worker")

_ERRORS = {
    "memory": WorkerOutOfMemory,
    "data": DataError,
    "model": ModelError,
    "adapter": AdapterError,
    "config": ConfigError,
    "disk": DiskFull,
    "diverged": Diverged,
    "worker": WorkerError,
}


class WorkCancelled(Exception):
    """The work was cancelled on request."""


class WorkerProcess:
    """A worker subprocess, started when first asked and kept warm until `end`.

    One request at a time. After any failure that leaves the process in doubt it is ended, and the next request starts
    another.

    Args:
        silence_s: a worker that says nothing for so long has hung and is ended.
        command: that starts it.
        environment: of it; None takes this process's.
        oom_kills: returns how many processes the kernel has ended for want of memory; None where nobody knows.
    """

    def __init__(
        self,
        *,
        silence_s: float,
        command: Sequence[str] = WORKER_COMMAND,
        environment: Mapping[str, str] | None = None,
        oom_kills: Callable[[], int | None] = count_oom_kills,
    ) -> None:
        self._silence_s = silence_s
        self._command = tuple(command)
        self._environment = environment
        self._oom_kills = oom_kills
        self._oom_kills_before: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._printed: PrintedLines | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def prepare(self, request: Prepare) -> Prepared:
        """Returns where the model is, its fingerprint, and the number of examples.

        Raises:
            ModelError, DataError, ConfigError: as the worker found.
            WorkerError: the worker failed, died, hung or wrote garbage.
        """
        answer = await self._ask(request, None)
        if not isinstance(answer, Prepared):
            raise await self._babbled(answer)
        return answer

    async def work(self, request: Work, on_progress: Callable[[Progress], None]) -> Finished:
        """Returns the answer to a round's work; `on_progress` sees each report on the way.

        Raises:
            ModelError, DataError, AdapterError, ConfigError, DiskFull: as the worker found.
            WorkCancelled: after `cancel`.
            WorkSuspended: after `suspend`.
            WorkerOutOfMemory: it said so, or the kernel killed it.
            WorkerError: the worker failed, died, hung or wrote garbage.
        """
        answer = await self._ask(request, on_progress)
        if not isinstance(answer, Finished):
            raise await self._babbled(answer)
        return answer

    async def probe(self, request: Probe, on_progress: Callable[[Progress], None]) -> Probed:
        """Returns what the machine can compute; `on_progress` sees what is measured next.

        Raises:
            ModelError: `cuda` was asked for, and there is no GPU.
            WorkCancelled: after `cancel`.
            WorkerError: the worker failed, died, hung or wrote garbage.
        """
        answer = await self._ask(request, on_progress)
        if not isinstance(answer, Probed):
            raise await self._babbled(answer)
        return answer

    async def bench(self, request: Bench, on_progress: Callable[[Progress], None]) -> Benched:
        """Returns what a micro-benchmark measured; after `suspend`, of the steps until then.

        Raises:
            ConfigError, DataError, ModelError: as the worker found.
            WorkCancelled: after `cancel`.
            WorkSuspended: after `suspend`, before a step was measured.
            WorkerOutOfMemory: it said so, or the kernel killed it.
            WorkerError: the worker failed, died, hung or wrote garbage.
        """
        answer = await self._ask(request, on_progress)
        if not isinstance(answer, Benched):
            raise await self._babbled(answer)
        return answer

    async def cancel(self) -> None:
        """Asks for the work under way to stop at its next step."""
        await self._tell(Cancel())

    async def suspend(self) -> None:
        """Asks for the work under way to stop at its next step and to keep what was done."""
        await self._tell(Suspend())

    async def _tell(self, frame: Cancel | Suspend) -> None:
        if self._process is not None and self._process.stdin is not None and self._process.returncode is None:
            self._process.stdin.write(encode_frame(frame))
            with contextlib.suppress(ConnectionError):
                await self._process.stdin.drain()

    async def end(self) -> None:
        """Ends the process, if it runs, and waits for it."""
        process, self._process = self._process, None
        printed, self._printed = self._printed, None
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
            if process.stdin is not None:
                process.stdin.close()
        if printed is not None:
            await printed.end()

    async def _ask(
        self, request: Prepare | Work | Probe | Bench, on_progress: Callable[[Progress], None] | None
    ) -> Answer:
        try:
            process = await self._running()
            assert process.stdin is not None
            process.stdin.write(encode_frame(request))
            with contextlib.suppress(ConnectionError):  # it has just died: reading its answer tells how
                await process.stdin.drain()
            while isinstance(answer := await self._read(process), Progress):
                if on_progress is not None:
                    on_progress(answer)
        except BaseException:
            await self.end()
            raise
        if isinstance(answer, Failed):
            if answer.kind == "cancelled":
                raise WorkCancelled(answer.message)
            if answer.kind == "suspended":
                raise WorkSuspended(answer.message)
            if answer.kind in ("memory", "worker"):
                await self.end()
            raise _ERRORS[answer.kind](answer.message)
        return answer

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            await self.end()
            self._oom_kills_before = self._oom_kills()
            self._printed = printed = await PrintedLines.begin()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=printed.fileno(),
                    limit=MAX_FRAME_BYTES,
                    env=self._environment,
                )
            except OSError as error:
                raise WorkerError(f"the worker could not be started: {error}") from error
            finally:
                printed.given()
        return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> Answer:
        assert process.stdout is not None
        try:
            line = await wait_at_most(process.stdout.readline(), self._silence_s)
        except asyncio.TimeoutError:
            raise WorkerDied(f"the worker said nothing for {self._silence_s:g} s and was ended") from None
        except ValueError:
            raise WorkerError(f"the worker wrote a line of more than {MAX_FRAME_BYTES} bytes") from None
        if line.endswith(b"\n"):
            return decode_answer(line)
        try:
            return_code = await wait_at_most(process.wait(), self._silence_s)
        except asyncio.TimeoutError:
            raise WorkerDied("the worker closed its output, lived on, and was ended") from None
        if return_code == -signal.SIGKILL:
            before, now = self._oom_kills_before, self._oom_kills()
            if before is not None and before == now:
                raise WorkerDied("the worker was killed (signal 9) by somebody: the kernel did not run out of memory")
            raise WorkerOutOfMemory("the worker was killed (signal 9), as the kernel does when memory runs out")
        raise WorkerDied(f"the worker ended without an answer (exit code {return_code}); its last words are in the log")

    async def _babbled(self, answer: Answer) -> WorkerError:
        await self.end()
        return WorkerError(f"the worker answered with {type(answer).__name__}, which was not asked for")
