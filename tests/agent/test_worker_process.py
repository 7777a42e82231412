"""The supervisor's handle on real subprocesses: ones that behave, and every way in which they do not."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.agent.frames import Prepare, Progress, Work
from edgefed.agent.worker_process import WorkCancelled, WorkerProcess
from edgefed.errors import (
    AdapterError,
    ConfigError,
    DataError,
    DiskFull,
    Diverged,
    EdgefedError,
    ModelError,
    WorkerDied,
    WorkerError,
    WorkerOutOfMemory,
)

PRELUDE = """
import json, os, signal, sys, time

TRAINING_SET = {"examples": 3, "source_tokens": 9, "target_tokens": 5}
PREPARED = {"type": "prepared", "model_path": "/model", "fingerprint": "f", "training_set": TRAINING_SET}
RECORD = {"device": "a", "round": 2, "rank": 4, "held_rank": 0, "quantization": "fp32", "examples": 3}
FINISHED = {"type": "finished", "record": RECORD}

def say(frame):
    sys.stdout.write(json.dumps(frame) + "\\n")
    sys.stdout.flush()

def hear():
    return json.loads(sys.stdin.readline() or "null")
"""

GOOD = """
while request := hear():
    if request["type"] == "work":
        say({"type": "progress", "stage": "loading"})
        for step in (1, 2):
            say({"type": "progress", "stage": "training", "step": step, "steps": 2, "loss": 5.5})
        say(FINISHED)
    elif request["type"] == "prepare":
        say(PREPARED)
"""


def worker(tmp_path: Path, does: str, *, silence_s: float = 20.0) -> WorkerProcess:
    program = tmp_path / "worker.py"
    program.write_text(PRELUDE + textwrap.dedent(does))
    return WorkerProcess(silence_s=silence_s, command=(sys.executable, str(program)))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_worker_that_behaves_stays_warm(tmp_path: Path, prepare: Prepare, work: Work) -> None:
    handle = worker(tmp_path, GOOD)
    assert handle.pid is None
    prepared = await handle.prepare(prepare)
    assert (prepared.model_path, prepared.fingerprint, prepared.training_set.examples) == ("/model", "f", 3)
    pid = handle.pid
    reports: list[Progress] = []
    finished = await handle.work(work, reports.append)
    assert finished.record.rank == 4
    assert [(report.stage, report.step) for report in reports] == [("loading", 0), ("training", 1), ("training", 2)]
    assert handle.pid == pid is not None
    await handle.end()
    assert handle.pid is None
    assert not is_alive(pid)


async def test_ending_twice_or_before_the_beginning_is_nothing(tmp_path: Path, prepare: Prepare) -> None:
    handle = worker(tmp_path, GOOD)
    await handle.end()
    await handle.cancel()
    await handle.prepare(prepare)
    await handle.end()
    await handle.end()
    assert (await handle.prepare(prepare)).training_set.examples == 3  # the next request starts another
    await handle.end()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("data", DataError),
        ("model", ModelError),
        ("adapter", AdapterError),
        ("config", ConfigError),
        ("worker", WorkerError),
        ("memory", WorkerOutOfMemory),
        ("disk", DiskFull),
        ("diverged", Diverged),
    ],
)
async def test_failures_become_the_errors_they_are(
    tmp_path: Path, work: Work, kind: str, error: type[EdgefedError]
) -> None:
    handle = worker(tmp_path, f'while hear(): say({{"type": "failed", "kind": {kind!r}, "message": "said so"}})')
    with pytest.raises(error, match=r"^said so$"):
        await handle.work(work, lambda _: None)
    in_doubt = kind in ("worker", "memory")
    assert (handle.pid is None) == in_doubt, "a worker whose memory is in doubt is not used again"
    await handle.end()


BAD: dict[str, tuple[str, type[WorkerError], str]] = {
    "dies": ("hear(); sys.exit(3)", WorkerDied, "exit code 3"),
    "dies at once": ("sys.exit(4)", WorkerDied, "exit code 4"),
    "dies in mid-word": ('hear(); sys.stdout.write(\'{"type": "prep\'); sys.exit(5)', WorkerDied, "exit code 5"),
    "crashes": ("hear(); os.kill(os.getpid(), signal.SIGABRT)", WorkerDied, "exit code -6"),
    "is killed": ("hear(); os.kill(os.getpid(), signal.SIGKILL)", WorkerDied, "signal 9.* did not run out of memory"),
    "hangs": ("hear(); time.sleep(60)", WorkerDied, "said nothing for 1.5 s"),
    "closes its output and hangs": ("hear(); os.close(1); time.sleep(60)", WorkerDied, "closed its output"),
    "writes garbage": ('hear(); print("Loading checkpoint shards: 100%", flush=True)', WorkerError, "not an answer"),
    "writes bytes": ('hear(); os.write(1, b"\\xff\\xfe\\n"); time.sleep(60)', WorkerError, "not an answer"),
    "writes a line of 5 MiB": ('hear(); print("x" * 5 * 2**20, flush=True)', WorkerError, "more than 4194304 bytes"),
    "writes 5 MiB and no line": ('hear(); os.write(1, b"x" * 5 * 2**20); time.sleep(60)', WorkerError, "more than"),
    "answers another question": (
        "hear(); say(FINISHED); time.sleep(60)",
        WorkerError,
        "with Finished, .* not asked for",
    ),
    "answers with a request": ('hear(); say({"type": "cancel"}); time.sleep(60)', WorkerError, "not an answer"),
}


@pytest.mark.parametrize("way", BAD)
async def test_a_worker_that_misbehaves_is_ended_and_replaced(tmp_path: Path, prepare: Prepare, way: str) -> None:
    does, error, said = BAD[way]
    silence_s = 1.5 if "hangs" in way else 20.0
    handle = worker(tmp_path, does, silence_s=silence_s)
    with pytest.raises(error, match=said) as caught:
        await handle.prepare(prepare)
    assert type(caught.value) is error
    assert handle.pid is None
    worker(tmp_path, GOOD)  # the program is now a better one
    assert (await handle.prepare(prepare)).training_set.examples == 3
    await handle.end()


@pytest.mark.parametrize("counts", [(7, 8), (None, None), (None, 3)])
async def test_a_kill_is_for_memory_where_the_kernel_counts_one_or_does_not_tell(
    tmp_path: Path, prepare: Prepare, counts: tuple[int | None, int | None]
) -> None:
    told = iter(counts)
    worker(tmp_path, "hear(); os.kill(os.getpid(), signal.SIGKILL)")
    handle = WorkerProcess(
        silence_s=20.0, command=[sys.executable, str(tmp_path / "worker.py")], oom_kills=lambda: next(told)
    )
    with pytest.raises(WorkerOutOfMemory, match="as the kernel does when memory runs out"):
        await handle.prepare(prepare)


async def test_progress_is_a_sign_of_life(tmp_path: Path, work: Work) -> None:
    slow = """
    hear()
    for step in range(10):
        time.sleep(0.2)
        say({"type": "progress", "stage": "training", "step": step})
    say(FINISHED)
    """
    handle = worker(tmp_path, slow, silence_s=1.5)
    steps: list[Progress] = []
    await handle.work(work, steps.append)  # takes longer than the silence that is allowed
    assert len(steps) == 10
    await handle.end()


async def test_a_worker_that_died_while_idle_is_replaced(tmp_path: Path, prepare: Prepare) -> None:
    handle = worker(tmp_path, GOOD)
    await handle.prepare(prepare)
    first = handle.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    while handle.pid is not None:  # noqa: ASYNC110 - nobody is told when an idle worker dies
        await asyncio.sleep(0.01)
    await handle.prepare(prepare)
    assert handle.pid not in (None, first)
    await handle.end()


async def test_a_worker_that_dies_while_it_is_being_asked_is_an_error_of_the_worker(
    tmp_path: Path, prepare: Prepare
) -> None:
    """The request is larger than the pipe, and nobody reads it."""
    handle = worker(tmp_path, "os.close(0); time.sleep(0.2); sys.exit(7)")
    large = Prepare(round=prepare.round, data=prepare.data, models={str(number): "x" * 1000 for number in range(500)})
    with pytest.raises(WorkerDied, match="exit code 7"):
        await handle.prepare(large)
    await handle.end()


async def test_a_program_that_cannot_be_started_is_an_error_of_the_worker(tmp_path: Path, prepare: Prepare) -> None:
    handle = WorkerProcess(silence_s=5.0, command=(str(tmp_path / "nothing"),))
    with pytest.raises(WorkerError, match="could not be started"):
        await handle.prepare(prepare)
    await handle.end()


CANCELLABLE = """
while request := hear():
    if request["type"] == "work":
        say({"type": "progress", "stage": "training", "step": 1})
        assert hear()["type"] == "cancel"
        say({"type": "failed", "kind": "cancelled", "message": "stopped at step 1"})
    elif request["type"] == "prepare":
        say(PREPARED)
"""


async def test_cancelled_work_leaves_the_worker_warm(tmp_path: Path, prepare: Prepare, work: Work) -> None:
    handle = worker(tmp_path, CANCELLABLE)
    cancelling: list[asyncio.Task[None]] = []
    on_progress: Callable[[Progress], None] = lambda _: cancelling.append(asyncio.create_task(handle.cancel()))  # noqa: E731
    with pytest.raises(WorkCancelled, match="stopped at step 1"):
        await handle.work(work, on_progress)
    pid = handle.pid
    await handle.prepare(prepare)
    assert handle.pid == pid is not None
    await asyncio.gather(*cancelling)
    await handle.end()


async def test_whoever_stops_waiting_stops_the_worker(tmp_path: Path, work: Work) -> None:
    handle = worker(tmp_path, 'hear(); say({"type": "progress", "stage": "loading"}); time.sleep(60)')
    started = asyncio.Event()
    waiting = asyncio.create_task(handle.work(work, lambda _: started.set()))
    await started.wait()
    pid = handle.pid
    assert pid is not None
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert handle.pid is None
    assert not is_alive(pid)


TALKATIVE = """
import subprocess
while request := hear():
    print("a warning of a library", file=sys.stderr, flush=True)
    os.write(2, b"10%\\r20%\\r\\n\\n" + b"x" * 40000 + b"\\n\\xff half")
    started = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    say({**PREPARED, "fingerprint": str(started.pid)})
"""


async def test_what_a_worker_prints_is_logged_line_by_line(
    tmp_path: Path, prepare: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    handle = worker(tmp_path, TALKATIVE)
    started = int((await handle.prepare(prepare)).fingerprint)
    try:
        await asyncio.wait_for(handle.end(), 20)  # what it has started does not hold this up
        assert is_alive(started)
    finally:
        os.kill(started, signal.SIGKILL)
    said = [record.getMessage() for record in caplog.records if record.name == "edgefed.agent.worker_output"]
    assert said[:3] == ["a warning of a library", "10%", "20%"]
    assert "".join(said[3:-1]) == "x" * 40000
    assert said[-1] == "\ufffd half"


async def test_the_last_words_of_a_worker_are_logged(
    tmp_path: Path, prepare: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    handle = worker(tmp_path, "hear()\nsys.exit('my last words')\n")
    with pytest.raises(WorkerDied, match="its last words are in the log"):
        await handle.prepare(prepare)
    assert "my last words" in caplog.messages
