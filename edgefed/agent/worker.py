"""The training subprocess: `python -m edgefed.agent.worker`. Requests on stdin, answers on stdout, no network.

It is a process of its own so that memory is really given back, an out-of-memory kill hits the worker and not the agent,
and a hang can be ended. It stays warm between rounds: loading torch and the model is most of a short round on a board.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from edgefed.agent.frames import (
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
    Request,
    Suspend,
    Work,
    decode_request,
    encode_frame,
)
from edgefed.data.source import DataSource
from edgefed.errors import (
    AdapterError,
    ConfigError,
    DataError,
    Diverged,
    EdgefedError,
    ModelError,
    WorkerError,
    WorkerOutOfMemory,
)
from edgefed.extras import EXTRAS, missing_message
from edgefed.files import is_disk_trouble
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.records import RoundRecord
from edgefed.training.round_work import RoundWork, TrainingSet, WorkSuspended
from edgefed.training.round_work import Suspend as SuspendTraining

__all__ = ["main"]

_ROUNDS = {"lora": "edgefed.training.lora_round"}
"""The module that does a round, by the tag of its method. Imported when first wanted, because it loads torch."""

_OUT_OF_MEMORY_TEXTS = ("out of memory", "NVML_SUCCESS == r", "NvMapMemAlloc", "CUBLAS_STATUS_ALLOC_FAILED")
"""JetPack 6 reports a plain lack of memory as a failed assertion in the CUDA allocator."""

_DISK_TEXTS = ("(os error 28)", "(os error 122)")
"""ENOSPC and EDQUOT, as the safetensors library words them in an error of its own."""

_KINDS: tuple[tuple[type[BaseException], Literal["memory", "data", "model", "adapter", "config", "diverged"]], ...] = (
    (MemoryError, "memory"),
    (WorkerOutOfMemory, "memory"),
    (DataError, "data"),
    (ModelError, "model"),
    (AdapterError, "adapter"),
    (ConfigError, "config"),
    (Diverged, "diverged"),
)


class _Report(Protocol):
    def __call__(
        self,
        stage: Literal["loading", "evaluating", "training", "saving"],
        step: int = 0,
        steps: int = 0,
        loss: float | None = None,
    ) -> None: ...


class _Rounds(Protocol):
    """What a method's module offers under the name `Rounds`; it keeps models warm between calls."""

    def look_at(self, announced: RoundOpen, data: DataSource, model_path: Path) -> TrainingSet: ...

    def run(self, work: RoundWork, report: _Report) -> RoundRecord: ...


class _Cancelled(Exception):
    """The supervisor no longer wants the work under way."""


class _Session:
    """One worker's life: what it keeps loaded, and where its answers go."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._cancelled = threading.Event()
        self._suspended = threading.Event()
        self._rounds: dict[str, _Rounds] = {}

    def expect(self) -> None:
        """A request has come: what was cancelled before is over."""
        self._cancelled.clear()
        self._suspended.clear()

    def cancel(self) -> None:
        """Makes the work under way stop at its next report."""
        self._cancelled.set()

    def suspend(self) -> None:
        """Makes the work under way stop at its next report, and keep what it has done."""
        self._suspended.set()

    def handle(self, request: Prepare | Work | Probe | Bench) -> None:
        """Answers one request, whatever happens in it."""
        try:
            if isinstance(request, Prepare):
                self._send(self._prepare(request))
            elif isinstance(request, Work):
                self._send(self._work(request))
            elif isinstance(request, Bench):
                self._send(self._bench(request))
            else:
                self._send(self._probe(request))
        except _Cancelled:
            self._send(Failed(kind="cancelled", message="the supervisor cancelled this"))
        except SuspendTraining:
            self._send(Failed(kind="suspended", message="stopped before the first step"))
        except WorkSuspended as kept:
            self._send(Failed(kind="suspended", message=str(kept)))
        except Exception as error:  # noqa: BLE001 - the process boundary: everything becomes an answer
            self._send(_failure(error))

    def _send(self, answer: Answer) -> None:
        self._answers.write(encode_frame(answer))
        self._answers.flush()

    def _prepare(self, request: Prepare) -> Prepared:
        from edgefed.models.checkpoint import fingerprint
        from edgefed.models.finding import resolve_model

        path = resolve_model(request.round.model.name, request.models)
        found = self._rounds_of(request.round).look_at(request.round, request.data, path)
        cost = None
        if request.round.privacy.example_noise_multiplier:
            from edgefed.training.accounting import cost_of

            cost = cost_of(request.round, found.examples, request.spent)
        return Prepared(model_path=str(path), fingerprint=fingerprint(path), training_set=found, privacy=cost)

    def _work(self, request: Work) -> Finished:
        def report(
            stage: Literal["loading", "evaluating", "training", "saving"],
            step: int = 0,
            steps: int = 0,
            loss: float | None = None,
        ) -> None:
            if self._cancelled.is_set():
                raise _Cancelled
            if self._suspended.is_set() and stage != "saving":
                raise SuspendTraining
            self._send(Progress(stage=stage, step=step, steps=steps, loss=loss))

        return Finished(record=self._rounds_of(request.work.announced).run(request.work, report))

    def _probe(self, request: Probe) -> Probed:
        from edgefed.training.probe import probe

        def report(what: str, step: int, steps: int) -> None:
            if self._cancelled.is_set():
                raise _Cancelled
            self._send(Progress(stage="measuring", step=step, steps=steps, what=what))

        machine = probe(request.hardware, threads=request.threads, quick=request.quick, report=report)
        return Probed(machine=machine)

    def _bench(self, request: Bench) -> Benched:
        from edgefed.training.bench import Stage, bench

        def report(stage: Stage, step: int, steps: int) -> None:
            if self._cancelled.is_set():
                raise _Cancelled
            self._send(Progress(stage=stage, step=step, steps=steps))
            if self._suspended.is_set():
                raise SuspendTraining

        return Benched(outcome=bench(request.work, report))

    def _rounds_of(self, announced: RoundOpen) -> _Rounds:
        tag = str(announced.method.__struct_config__.tag)
        if tag not in self._rounds:
            self._rounds[tag] = importlib.import_module(_ROUNDS[tag]).Rounds()
        return self._rounds[tag]


def _failure(error: Exception) -> Failed:
    """Returns the answer for an exception, with a traceback on stderr where it is not one of ours."""
    name = type(error).__name__
    text = f"{name}: {error}"
    if any(sign in text for sign in _OUT_OF_MEMORY_TEXTS):
        return Failed(kind="memory", message=text)
    if is_disk_trouble(error) or any(sign in text for sign in _DISK_TEXTS):
        return Failed(kind="disk", message=str(error))
    for branch, kind in _KINDS:
        if isinstance(error, branch):
            return Failed(kind=kind, message=str(error))
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").partition(".")[0]) in EXTRAS:
        return Failed(kind="worker", message=missing_message([package]))
    if not isinstance(error, EdgefedError):
        traceback.print_exception(error)
        # The message is told to the fleet, and what a library says may quote an example.
        return Failed(kind="worker", message=f"an unexpected {name}: what it said stands in the log of this device")
    return Failed(kind="worker", message=str(error))


def _read_requests(session: _Session, requests: queue.Queue[Prepare | Work | Probe | Bench]) -> None:
    """Feeds the queue from stdin; ends the process when the supervisor is gone, whatever it is doing."""
    try:
        for line in sys.stdin.buffer:
            request: Request = decode_request(line)
            if isinstance(request, Cancel):
                session.cancel()
            elif isinstance(request, Suspend):
                session.suspend()
            else:
                session.expect()
                requests.put(request)
    except WorkerError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _volunteer_for_the_oom_killer() -> None:
    """When the board runs out of memory, this process shall go, not the agent."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


def main() -> None:
    """Serves requests until stdin closes."""
    _volunteer_for_the_oom_killer()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to both: the supervisor answers it
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must never land among the frames
    session = _Session(answers)
    requests: queue.Queue[Prepare | Work | Probe | Bench] = queue.Queue()
    threading.Thread(target=_read_requests, args=(session, requests), name="requests", daemon=True).start()
    while True:
        session.handle(requests.get())


if __name__ == "__main__":
    main()
