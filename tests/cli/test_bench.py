"""`edgefed bench` with real workers: a reference that reports take, and words for what cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from edgefed.cli.bench_run import yardstick
from edgefed.cli.bench_view import compared, result_rows
from edgefed.devices.board_files import find_board
from edgefed.devices.compute import ComputeProfile, MachineProbe
from edgefed.devices.gpu import GpuProfile
from edgefed.devices.measurement import absent, measured
from edgefed.devices.usage import Energy, HardwareUse
from edgefed.models.finding import resolve_model
from edgefed.protocol.records import RoundRecord
from edgefed.reports.reference import BenchFile, BenchResult, read_references
from edgefed.training.bench_work import BenchOutcome, BenchWork
from tests.cli.test_report import keep

Run = Callable[..., Any]

TINY = ("bench", "--shape", "tiny", "--lengths", "16,6", "--batch", "2", "--warmup", "1", "--threads", "1")


def result(name: str, quantization: str = "fp32", *, forward_s: float = 8.0, watts: float | None = None) -> BenchResult:
    energy = (
        Energy(reason="no sensor") if watts is None else Energy(joules=watts * 10, mean_w=watts, measured_share=1.0)
    )
    return BenchResult(
        name=name,
        record=RoundRecord(
            device="this-machine", round=0, rank=8, held_rank=0, quantization=quantization, examples=8, steps=2,
            forward_s=forward_s, source_tokens=1000, target_tokens=200, model_flops=4e9, live_peak_flops_per_s=1e9,
            peak_memory_bytes=10**9, use=HardwareUse(window_s=10.0, samples=20, energy=energy),
        ),
    )  # fmt: skip


@pytest.mark.torch
def test_a_result_is_written_shown_and_taken_by_reports(
    edgefed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    place = tmp_path / "here.json"
    done = edgefed(*TINY, "--steps", "2", "-q", "fp32,nf4", "-q", "fp32", "--held-rank", "3", "--output", place)
    assert (done.code, done.err) == (0, "")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert rows[0] == ["figure", "fp32", "nf4", "why there is none"]
    figures = {name: (fp32, nf4, why) for name, fp32, nf4, why in rows[1:]}
    assert figures["steps"] == ("2", "2", "")
    assert figures["MFU, of the measured peak"][0].endswith(" %")
    assert figures["mean power"][:2] == ("–", "–")
    assert figures["mean power"][2], "a figure that is missing says why"
    written = msgspec.json.decode(place.read_bytes(), type=BenchFile)
    assert [one.record.quantization for one in written.results] == ["fp32", "nf4"]
    for one in written.results:
        assert one.record.use is not None
        assert one.record.use.energy.joules is not None or one.record.use.energy.reason
        assert f", tiny, {one.record.quantization}, 2 × (16 + 6) tokens" in one.name
        assert "rank 8 on q, v, held rank 3; 2 steps after 1; random weights" in one.source
    assert list((tmp_path / "scratch").glob("edgefed-*")) == [], "the checkpoint is gone"
    run = keep(tmp_path / "edgefed-run", devices=2)
    assert edgefed("report", run, "--reference", place).code == 0
    assert "tiny, nf4, 2 × (16 + 6) tokens" in (run / "report.html").read_text()


@pytest.mark.torch
def test_json_is_a_reference_too_with_comparisons(edgefed: Run, tmp_path: Path) -> None:
    stored, place = tmp_path / "reference.json", tmp_path / "here.json"
    stored.write_bytes(msgspec.json.encode(BenchFile(results=[result("fast")])))
    kept = tmp_path / "models"
    done = edgefed(*TINY, "--steps", "1", "--keep", kept, "--stored", "bf16", "--json", "--reference", stored)
    assert done.code == 0, done.err
    assert (kept / "tiny-bf16/model.safetensors").is_file()
    place.write_text(done.out)
    [here] = read_references(place)
    document = json.loads(done.out)
    assert document["results"][0]["use"]["tokens_per_s"]["value"] == here.use.tokens_per_s.value
    [pair] = document["comparisons"]
    assert (pair["result"], pair["reference"]) == (here.name, "fast")
    assert pair["tokens/s"] == pytest.approx(here.use.tokens_per_s.value / 150)


@pytest.mark.torch
def test_what_one_precision_lacks_does_not_cost_the_others(
    edgefed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.machinery as machinery\n"
        "find = machinery.PathFinder.find_spec\n"
        "def find_others(name, path=None, target=None):\n"
        "    return None if name == 'bitsandbytes' else find(name, path, target)\n"
        "machinery.PathFinder.find_spec = find_others\n"
    )
    paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    tiny = resolve_model("edgefed/tiny-t5")
    done = edgefed(*TINY, "--steps", "1", "-q", "nf4,bf16", "--checkpoint", tiny, "--json")
    assert done.code == 5
    assert done.err == (
        "edgefed: nf4: nf4 needs bitsandbytes, which is not installed: pip install 'edgefed[train]', or bench fp32 or "
        "bf16\n"
    )
    [one] = json.loads(done.out)["results"]
    assert one["record"]["quantization"] == "bf16"
    assert ", tiny_t5, bf16" in one["name"]
    assert one["source"].endswith("a checkpoint")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--batch", "1000000000"], 5, "tiny in fp32 takes at least"),
        (["--rank", "500"], 3, "rank 500 is over 128"),
    ],
)
def test_what_only_the_worker_can_tell(edgefed: Run, options: list[str], code: int, said: str) -> None:
    done = edgefed(*TINY, *options)
    assert done.code == code
    assert said in done.err
    assert done.out == ""


@pytest.mark.torch
def test_a_checkpoint_that_does_not_fit_the_disk_is_told_and_removed(tmp_path: Path) -> None:
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash"]  # no file over 200 KiB, as the kernel sees to
    command = [*limited, sys.executable, "-m", "edgefed", *TINY, "--keep", tmp_path / "models"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "the checkpoint cannot be written: File too large" in done.stderr
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["-q", "fp32,fp8"], 2, "'fp8' is not one of fp32, bf16, int8, nf4"),
        (["--lengths", "512"], 2, "'512' is not two numbers"),
        (["--lengths", "512,a"], 2, "'512,a' is not two numbers"),
        (["--lengths", "512,1"], 2, "at least 2 tokens"),
        (["--shape", "flan-t6"], 2, "flan-t6"),
        (["--steps", "0"], 2, "--steps"),
        (["--checkpoint", "no/such"], 5, "there is no model directory 'no/such'"),
        (["--checkpoint", ".", "--keep", "."], 2, "--keep is for random weights"),
        (["--output", "no/such/file"], 3, "no/such is no directory"),
        (["--output", "."], 3, "is a directory"),
        (["--output", "/proc/here.json"], 3, "/proc/here.json: cannot be used"),
        (["--reference", "absent.json"], 3, "absent.json: the reference cannot be read"),
        (["--keep", "/proc/no/such"], 3, "cannot be used"),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_is_started(
    edgefed: Run, options: list[str], code: int, said: str
) -> None:
    done = edgefed("bench", *options)
    assert done.code == code, done.err
    assert said in " ".join(done.err.split())


class Started:
    """A bench on a terminal, in a session of its own, so that it and its worker can be sent what a terminal sends."""

    def __init__(self, directory: Path) -> None:
        (directory / "scratch").mkdir()
        self.output = directory / "here.json"
        self.scratch = directory / "scratch"
        self._shown, terminal = os.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgefed", *TINY, "--steps", "1000000", "--output", str(self.output)],
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(self.scratch), "TERM": "xterm"},
        )
        os.close(terminal)

    def until_it_shows(self, text: str) -> None:
        while text not in self.seen:
            self.seen += os.read(self._shown, 4096).decode(errors="replace")

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> str:
        """Returns what it wrote to stdout, once it is over."""
        out, _ = self.process.communicate()
        os.close(self._shown)
        return out


@pytest.mark.torch
def test_ctrl_c_leaves_what_was_measured(tmp_path: Path) -> None:
    bench = Started(tmp_path)
    with bench.process:
        bench.until_it_shows("fp32: steps")
        bench.interrupt()
        bench.until_it_shows("stopping after this step")
        out = bench.end()
    assert bench.process.returncode == 130
    [written] = msgspec.json.decode(bench.output.read_bytes(), type=BenchFile).results
    assert 1 <= written.record.steps < 1_000_000
    assert f"{written.record.steps} steps after 1" in written.source
    assert out.startswith("figure\tfp32\t")
    assert list(bench.scratch.glob("edgefed-*")) == []


@pytest.mark.torch
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    bench = Started(tmp_path)
    with bench.process:
        bench.until_it_shows("starting the worker")
        while not (workers := psutil.Process(bench.process.pid).children()):
            time.sleep(0.02)
        bench.interrupt()
        bench.until_it_shows("stopping after this step")
        bench.interrupt()
        out = bench.end()
    assert (bench.process.returncode, out) == (130, "")
    assert [worker for worker in workers if worker.is_running()] == []
    assert list(bench.scratch.glob("edgefed-*")) == []
    assert not bench.output.exists()


def test_the_sheet_of_the_board_that_computed_is_beside_the_measured_peak() -> None:
    gpu = GpuProfile(
        name="NVIDIA GeForce RTX 4090", compute_capability=8.9, integrated=False, memory_total_bytes=25_241_190_400,
        memory_free_bytes=24 * 10**9, sm_count=128,
    )  # fmt: skip
    compute = ComputeProfile(
        hardware="cuda", threads=1, flops_per_s={"bf16": measured(1.5e14, "torch.mm")},
        memory_bandwidth_bytes_per_s=absent("not tried"),
    )  # fmt: skip
    machine = MachineProbe(compute=compute, gpu=gpu)
    outcome = BenchOutcome(record=result("a").record, kind="bf16", machine=machine, software="torch")
    found = yardstick(outcome, BenchWork(directory=".", quantization="nf4"))
    assert found.board is not None
    assert found.sheet_peak_flops_per_s == find_board(found.board).in_mode(None).peaks["bf16"]
    on_cpu = msgspec.structs.replace(machine, gpu=None, compute=msgspec.structs.replace(compute, hardware="cpu"))
    without = yardstick(msgspec.structs.replace(outcome, machine=on_cpu), BenchWork(directory=".", quantization="nf4"))
    assert without.sheet_peak_flops_per_s is None, "what a GPU's sheet says is no matter of the CPU beside it"


def test_rows_have_a_value_or_a_reason() -> None:
    rows = {row[0]: row[1:] for row in result_rows([result("a", watts=20.0), result("b", "nf4", forward_s=16.0)])}
    assert rows["forward, a step"] == ("4.00 s", "8.00 s", "")
    assert rows["tokens/s"] == ("150", "75.0", "")
    assert rows["MFU, of the measured peak"] == ("50.0 %", "25.0 %", "")
    assert rows["tokens/s per watt"] == ("7.50", "–", "no sensor")


def test_compared_with_the_same_precision_where_there_is_one(tmp_path: Path) -> None:
    place = tmp_path / "reference.json"
    stored = BenchFile(results=[result("fast", forward_s=2.0, watts=80.0), result("fast nf4", "nf4", forward_s=4.0)])
    place.write_bytes(msgspec.json.encode(stored))
    here = [result("here", watts=20.0), result("here nf4", "nf4"), result("here bf16", "bf16")]
    pairs = compared(here, read_references(place))
    assert [(one["result"], one["reference"]) for one in pairs] == [
        ("here", "fast"), ("here nf4", "fast nf4"), ("here bf16", "fast"), ("here bf16", "fast nf4"),
    ]  # fmt: skip
    assert (pairs[0]["step"], pairs[0]["tokens/s"], pairs[0]["peak memory"]) == (4.0, 0.25, 1.0)
    assert pairs[0]["tokens/s per watt"] == pytest.approx(150 / 20 / (600 / 80))
    assert pairs[1]["tokens/s per watt"] is None, "no power was measured"
