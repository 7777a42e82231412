"""Running micro-benchmarks one after the other, each in a worker of its own, and keeping what was measured."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import typer

from edgefed.agent.board_keeper import BoardKeeper, Yardstick
from edgefed.agent.frames import Bench, Progress
from edgefed.agent.options import Emulate
from edgefed.agent.worker_process import WorkerProcess
from edgefed.cli.inference import Progress as Move
from edgefed.cli.inference import progress
from edgefed.cli.output import write_output
from edgefed.devices.cpu import read_cpu
from edgefed.devices.instruments import Hardware, Instruments, find_instruments
from edgefed.devices.power_mode import read_power_mode
from edgefed.devices.profile import read_profile
from edgefed.devices.sampling import Sampler
from edgefed.devices.sensors import PowerProfile
from edgefed.errors import EdgefedError, ModelError, WorkerError
from edgefed.reports.reference import BenchFile, BenchResult
from edgefed.stopping import Stopped
from edgefed.training.bench_work import BenchOutcome, BenchWork
from edgefed.training.round_work import WorkSuspended

__all__ = ["Benches", "run_benches", "yardstick"]

_SILENCE_S = 3600.0  # a step of a large model on a small processor says nothing for long; Ctrl-C is always heard
_SAMPLE_S = 0.5
_LONGEST_PROCESSOR = 48


class Benches(NamedTuple):
    """What came out: the results, and the exit code of the first thing that went wrong; 0 where nothing did."""

    results: list[BenchResult]
    exit_code: int


def run_benches(works: Sequence[BenchWork], name: str, output: Path | None) -> Benches:
    """Returns what was measured; `output` has it after each of them.

    A work that fails for want of room, bitsandbytes or a kernel is told on stderr, and the next one is tried.

    Args:
        works: what to measure, differing in precision.
        name: of the model, for people.
        output: file for the results, as a `BenchFile`; None for none.

    Raises:
        ConfigError, DataError: what is wrong for all of them.
    """
    runner = _Runner(name, output)
    with progress("bench") as move:
        asyncio.run(runner.run(works, move))
    return Benches(runner.results, runner.exit_code)


class _Runner:
    """Benches one after the other until a signal comes."""

    def __init__(self, name: str, output: Path | None) -> None:
        self.results: list[BenchResult] = []
        self.exit_code = 0
        self._name = name
        self._output = output
        self._worker = WorkerProcess(silence_s=_SILENCE_S)
        self._instruments: Instruments | None = None
        self._stopped: signal.Signals | None = None
        self._telling: set[asyncio.Task[None]] = set()

    async def run(self, works: Sequence[BenchWork], move: Move) -> None:
        """Benches; a first signal ends after the step under way, a second one at once."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            if self._stopped is not None:
                task.cancel()
                return
            self._stopped = number
            typer.echo("edgefed: stopping after this step; once more to stop at once", err=True)
            self._suspend()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            for work in works:
                await self._run_one(work, move)
                if self._stopped is not None:
                    break
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            await self._worker.end()
        if self._stopped is not None:
            self.exit_code = Stopped(self._stopped).exit_code

    async def _run_one(self, work: BenchWork, move: Move) -> None:
        try:
            self._keep(await self._measure(work, move), work)
        except WorkSuspended:
            return
        except (ModelError, WorkerError) as error:
            self._failed(work, error)
        finally:
            await self._worker.end()  # what one precision leaves in memory is not the next one's

    async def _measure(self, work: BenchWork, move: Move) -> BenchOutcome:
        """Returns the outcome with the hardware's use while the measured steps were done."""
        async with contextlib.AsyncExitStack() as stack:
            samplers: list[Sampler] = []
            if self._instruments is None:
                self._instruments = await asyncio.to_thread(find_instruments, gpu=work.hardware != "cpu")
            hardware: Hardware | None = "cpu" if self._instruments.nvml is None else None

            def on_progress(frame: Progress) -> None:
                if self._stopped is not None:  # the worker may only just have begun to listen
                    self._suspend()
                if frame.stage == "training" and not samplers:
                    samplers.append(Sampler(lambda: self._worker.pid, instruments=self._instruments, hardware=hardware))
                    looking = asyncio.ensure_future(_look(samplers[0]))
                    stack.callback(looking.cancel)
                _show(frame, work, move)

            move(0, 1, f"{work.quantization}: starting the worker")
            outcome = (await self._worker.bench(Bench(work=work), on_progress)).outcome
            samplers[0].look()
            sheet = yardstick(outcome, work)
            record = msgspec.structs.replace(
                outcome.record,
                use=samplers[0].use(),
                sheet_peak_flops_per_s=sheet.sheet_peak_flops_per_s,
                board=sheet.board,
            )
            return msgspec.structs.replace(outcome, record=record)

    def _suspend(self) -> None:
        telling = asyncio.ensure_future(self._worker.suspend())
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def _keep(self, outcome: BenchOutcome, work: BenchWork) -> None:
        self.results.append(_result(outcome, work, self._name))
        if self._output is not None:
            write_output(self._output, msgspec.json.format(msgspec.json.encode(BenchFile(results=self.results))))

    def _failed(self, work: BenchWork, error: EdgefedError) -> None:
        typer.echo(f"edgefed: {work.quantization}: {error}", err=True)
        self.exit_code = self.exit_code or error.exit_code


def yardstick(outcome: BenchOutcome, work: BenchWork) -> Yardstick:
    """Returns what the sheet of this machine's board says, in its live power mode, of the type it was computed in."""
    mode, mode_reason = read_power_mode()
    profile = msgspec.structs.replace(
        read_profile(Path(work.directory), quantization=work.quantization, max_rank=work.rank),
        gpu=outcome.machine.gpu,
        compute=outcome.machine.compute,
        power=PowerProfile(mode=mode, mode_reason=mode_reason),
    )
    return BoardKeeper(Emulate()).yardstick(profile, outcome.kind)


def _result(outcome: BenchOutcome, work: BenchWork, name: str) -> BenchResult:
    cpu = read_cpu()
    processor = (outcome.machine.gpu.name if outcome.machine.gpu else cpu.model) or cpu.architecture
    batch = f"{work.batch_size} × ({work.source_tokens} + {work.target_tokens}) tokens"
    held = f", held rank {work.held_rank}" if work.held_rank else ""
    checkpointing = ", gradient checkpointing" if work.gradient_checkpointing else ""
    threads = outcome.machine.compute.threads
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return BenchResult(
        name=f"{processor[:_LONGEST_PROCESSOR].strip()}, {name[:24]}, {work.quantization}, {batch}",
        source=(
            f"edgefed bench on {today}: {outcome.software}; threads {threads}; rank {work.rank} on "
            f"{', '.join(work.target_modules)}{held}{checkpointing}; {outcome.record.steps} steps after "
            f"{work.warmup_steps}; {'random weights' if work.shape is not None else 'a checkpoint'}"
        ),
        record=outcome.record,
    )


def _show(frame: Progress, work: BenchWork, move: Move) -> None:
    if frame.stage == "writing":
        move(frame.step >> 20, frame.steps >> 20, "writing random weights, MiB")
        return
    what = {"measuring": "matrix-product rate", "loading": "loading", "warming": "warming up", "training": "steps"}
    move(frame.step, frame.steps, f"{work.quantization}: {what[frame.stage]}")


async def _look(sampler: Sampler) -> None:
    while True:
        await asyncio.sleep(_SAMPLE_S)
        sampler.look()
