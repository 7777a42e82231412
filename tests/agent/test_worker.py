"""The real worker process, with rounds of the test's own in place of training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import edgefed
from edgefed.agent.frames import (
    Answer,
    Cancel,
    Failed,
    Finished,
    Prepare,
    Probe,
    Progress,
    Request,
    Suspend,
    Work,
    decode_answer,
    encode_frame,
)
from edgefed.protocol.tasks import Evaluation, ModelReference, Training

REPOSITORY = Path(edgefed.__file__).parents[1]

ROUNDS = """
import os, subprocess, sys, time
from pathlib import Path
from edgefed.errors import AdapterError, DataError, Diverged
from edgefed.protocol.records import RoundRecord

class Rounds:
    def __init__(self):
        self.calls = 0

    def run(self, work, report):
        self.calls += 1
        getattr(self, work.output)(report)
        round_ = work.announced.round
        return RoundRecord(
            device=work.device, round=round_, rank=4, held_rank=0, quantization="fp32", examples=self.calls
        )

    def well(self, report):
        report("training", 1, 1, 5.5)

    def noisily(self, report):
        print("a print")
        sys.stdout.write('{"type":"failed","kind":"data","message":"a print that looks like a frame"}\\n')
        sys.stdout.flush()
        os.write(1, b"a library in C\\n")
        subprocess.run(["echo", "a program"], check=True)
        report("training", 1, 1, 5.5)

    def for_ever(self, report):
        step = 0
        while True:
            step += 1
            report("training", step, 0, None)
            time.sleep(0.005)

    def without_data(self, report):
        raise DataError("line 3: not JSON")

    def with_a_bad_adapter(self, report):
        raise AdapterError("rank 9")

    def with_a_bug(self, report):
        raise ZeroDivisionError("division by zero")

    def on_a_full_disk(self, report):
        raise OSError(28, "No space left on device", "update.safetensors")

    def on_a_full_disk_by_a_library(self, report):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    def without_a_file(self, report):
        raise FileNotFoundError(2, "No such file or directory", "examples.jsonl")

    def with_a_loss_of_nan(self, report):
        raise Diverged("training diverged: the loss is nan at step 3")

    def short_of_memory(self, report):
        raise MemoryError("no more")

    def short_of_cuda_memory(self, report):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def short_of_jetson_memory(self, report):
        raise RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131')
"""

START = "import edgefed.agent.worker as worker; worker._ROUNDS = {'lora': 'trial_rounds'}; worker.main()"


class Worker:
    """A worker and the supervisor's ends of its pipes."""

    def __init__(self, command: list[str], directory: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(directory)))}
        self.errors = directory / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=directory,
            )

    def ask(self, *requests: Request) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(encode_frame(request) for request in requests))
        self.process.stdin.flush()

    def hear(self) -> Answer:
        assert self.process.stdout is not None
        return decode_answer(self.process.stdout.readline())

    def hear_the_end(self) -> Answer:
        """Returns the next answer that is not `Progress`."""
        while isinstance(answer := self.hear(), Progress):
            pass
        return answer


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    (tmp_path / "trial_rounds.py").write_text(ROUNDS)
    started = Worker(["-c", START], tmp_path)
    with started.process:
        yield started
        started.process.kill()


def round_of(work: Work, kind: str) -> Work:
    return Work(work=msgspec.structs.replace(work.work, output=kind))


def test_prints_of_libraries_do_not_get_among_the_frames(worker: Worker, work: Work) -> None:
    worker.ask(round_of(work, "noisily"))
    assert worker.hear() == Progress(stage="training", step=1, steps=1, loss=5.5)
    assert isinstance(worker.hear(), Finished)
    printed = worker.errors.read_text()
    for text in ("a print", "looks like a frame", "a library in C", "a program"):
        assert text in printed


def test_failures_are_answers_and_the_worker_goes_on(worker: Worker, work: Work) -> None:
    expected = {
        "without_data": ("data", "line 3: not JSON"),
        "with_a_bad_adapter": ("adapter", "rank 9"),
        "with_a_bug": ("worker", "an unexpected ZeroDivisionError: what it said stands in the log"),
        "on_a_full_disk": ("disk", "No space left on device: 'update.safetensors'"),
        "on_a_full_disk_by_a_library": ("disk", "No space left on device"),
        "without_a_file": ("worker", "FileNotFoundError"),
        "with_a_loss_of_nan": ("diverged", "the loss is nan at step 3"),
        "short_of_memory": ("memory", "no more"),
        "short_of_cuda_memory": ("memory", "CUDA out of memory"),
        "short_of_jetson_memory": ("memory", "NVML_SUCCESS == r"),
    }
    for kind, (branch, said) in expected.items():
        worker.ask(round_of(work, kind))
        answer = worker.hear()
        assert isinstance(answer, Failed)
        assert answer.kind == branch
        assert said in answer.message
        assert "division by zero" not in answer.message, "what a library says may quote an example"
    assert "division by zero" in worker.errors.read_text()
    assert "Traceback" in worker.errors.read_text()
    assert "a_library_for_training" not in worker.errors.read_text(), "to be without it is no bug of ours"
    worker.ask(round_of(work, "well"))
    finished = worker.hear_the_end()
    assert isinstance(finished, Finished)
    assert finished.record.examples == len(expected) + 1, "it is the same worker, still warm"


def test_a_cancel_stops_the_work_under_way_and_nothing_after_it(worker: Worker, work: Work) -> None:
    worker.ask(round_of(work, "for_ever"))
    assert isinstance(worker.hear(), Progress)
    worker.ask(Cancel())
    stopped = worker.hear_the_end()
    assert isinstance(stopped, Failed)
    assert stopped.kind == "cancelled"
    worker.ask(round_of(work, "well"))
    assert isinstance(worker.hear_the_end(), Finished)


def test_a_cancel_that_comes_too_late_does_not_hit_the_next_work(worker: Worker, work: Work) -> None:
    worker.ask(round_of(work, "well"))
    assert isinstance(worker.hear_the_end(), Finished)
    worker.ask(Cancel())
    worker.ask(round_of(work, "well"))
    assert isinstance(worker.hear_the_end(), Finished)


def test_a_cancel_that_comes_before_its_work_has_begun_is_not_lost(worker: Worker, work: Work) -> None:
    worker.ask(round_of(work, "for_ever"), Cancel())
    stopped = worker.hear_the_end()
    assert isinstance(stopped, Failed)
    assert stopped.kind == "cancelled"


def test_suspended_work_is_answered_and_the_worker_stays_warm(worker: Worker, work: Work) -> None:
    worker.ask(round_of(work, "for_ever"))
    assert isinstance(worker.hear(), Progress)
    worker.ask(Suspend())
    stopped = worker.hear_the_end()
    assert isinstance(stopped, Failed)
    assert stopped.kind == "suspended"
    worker.ask(Suspend())  # too late: it must not hit the next work
    worker.ask(round_of(work, "well"))
    assert isinstance(worker.hear_the_end(), Finished)


def test_a_round_suspended_in_one_worker_and_finished_in_another_gives_the_same_update(
    tmp_path: Path, work: Work
) -> None:
    rows = [{"dialogue": f"a: is it {i}? b: it is {i}.", "summary": f"It is {i}."} for i in range(12)]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    announced = msgspec.structs.replace(
        work.work.announced,
        model=ModelReference(name="edgefed/tiny-t5"),
        evaluation=Evaluation(every=0),
        evaluates=False,
        training=Training(local_steps=40, batch_size=2),
    )

    def of(name: str) -> Work:
        return Work(
            work=msgspec.structs.replace(
                work.work, announced=announced, output=f"{name}.safetensors", residual=f"{name}.residual", threads=1
            )
        )

    first, second = (Worker(["-m", "edgefed.agent.worker"], tmp_path) for _ in range(2))
    with first.process, second.process:
        first.ask(of("whole"))
        whole = first.hear_the_end()
        first.ask(of("pieces"))
        while not (isinstance(answer := first.hear(), Progress) and answer.step == 3):
            assert isinstance(answer, Progress)
        first.ask(Suspend())
        stopped = first.hear_the_end()
        assert isinstance(stopped, Failed)
        assert stopped.kind == "suspended"
        assert "of 40 steps are done and kept" in stopped.message
        assert not (tmp_path / "pieces.safetensors").exists()
        second.ask(of("pieces"))
        assert isinstance(second.hear(), Progress)
        finished = second.hear_the_end()
        for worker in (first, second):
            worker.process.kill()
    assert isinstance(whole, Finished)
    assert isinstance(finished, Finished)
    assert finished.record.steps == whole.record.steps == 40
    assert finished.record.loss_mean == whole.record.loss_mean
    assert (tmp_path / "pieces.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not list(tmp_path.glob("*.suspended"))


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_ends_when_its_supervisor_is_gone(worker: Worker, work: Work, busy: bool) -> None:
    if busy:
        worker.ask(round_of(work, "for_ever"))
        assert isinstance(worker.hear(), Progress)
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(timeout=20) == 0


def test_a_request_that_is_none_ends_the_worker_with_a_word(worker: Worker) -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.write(b"train, please\n")
    worker.process.stdin.flush()
    assert worker.process.wait(timeout=20) == 1
    assert "not a request" in worker.errors.read_text()


def test_the_worker_volunteers_for_the_oom_killer(worker: Worker, work: Work) -> None:
    worker.ask(round_of(work, "well"))
    assert isinstance(worker.hear_the_end(), Finished)
    assert Path(f"/proc/{worker.process.pid}/oom_score_adj").read_text() == "900\n"


def test_a_missing_model_is_an_answer_of_the_worker_as_it_is_started(tmp_path: Path, prepare: Prepare) -> None:
    started = Worker(["-m", "edgefed.agent.worker"], tmp_path)
    with started.process:
        started.ask(prepare)
        answer = started.hear()
        assert isinstance(answer, Failed)
        assert answer.kind == "model"
        assert "no-such-model" in answer.message
        assert started.process.stdin is not None
        started.process.stdin.close()
        assert started.process.wait(timeout=20) == 0


def test_a_base_install_says_what_it_lacks_without_a_traceback(tmp_path: Path) -> None:
    started = Worker(["-c", f"import sys; sys.modules['torch'] = None; {START}"], tmp_path)
    with started.process:
        started.ask(Probe(hardware="cpu", threads=1, quick=True))
        missing = "this needs torch, which is not installed: pip install 'edgefed[train]'"
        assert started.hear_the_end() == Failed(kind="worker", message=missing)
        assert started.errors.read_text() == ""
        started.process.kill()
