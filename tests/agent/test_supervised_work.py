"""Work by a real process, with a recorded machine's sensors looked at meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.agent import supervised_work
from edgefed.agent.announcements import Announcements
from edgefed.agent.eligibility import Guard
from edgefed.agent.frames import Finished, Work
from edgefed.agent.options import Eligibility
from edgefed.agent.presence import Presence
from edgefed.agent.supervised_work import SupervisedWork
from edgefed.agent.worker_process import WorkerProcess
from edgefed.devices.conditions import Conditions, read_conditions
from edgefed.devices.instruments import find_instruments
from edgefed.devices.sampling import Sampler
from edgefed.protocol.messages.retained import RoundOpen
from edgefed.protocol.topics import Topics
from edgefed.transport.in_memory import InMemoryBroker
from tests.shared.power_reader_suite import copy_of

FINISHED = {
    "type": "finished",
    "record": {"device": "a", "round": 2, "rank": 4, "held_rank": 0, "quantization": "fp32", "examples": 3},
}

SUSPENDED = {"type": "failed", "kind": "suspended", "message": "1 of 2 steps are done and kept"}


def working_for(tmp_path: Path, work_s: float) -> WorkerProcess:
    """Returns a worker that takes so long for its work, and lets a package's counter grow by 30 W meanwhile."""
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    program = tmp_path / "worker.py"
    program.write_text(
        "import os, sys, time\n"
        "sys.stdin.readline()\n"
        f"began_s = time.monotonic()\n"
        f"while (gone_s := time.monotonic() - began_s) < {work_s}:\n"
        f"    with open({str(counter) + '.new'!r}, 'w') as new: new.write(str(int(gone_s * 30e6)))\n"
        f"    os.replace({str(counter) + '.new'!r}, {str(counter)!r})\n"
        "    time.sleep(0.02)\n"
        f"print({json.dumps(FINISHED)!r}, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    return WorkerProcess(silence_s=20.0, command=(sys.executable, str(program)))


async def finish(
    worker: WorkerProcess,
    new_sampler: Callable[[], Sampler],
    announced: RoundOpen,
    work: Work,
    guard: Guard | None = None,
) -> Finished:
    presence = Presence(Topics("barn"), "a")
    async with InMemoryBroker().connect("a", presence.will) as transport:
        guard = guard or Guard(Eligibility(on_battery=True), read_conditions)
        one = SupervisedWork(transport, presence, worker, Announcements(), guard, new_sampler)
        try:
            return await asyncio.wait_for(one.do(announced, work.work), 20)
        finally:
            await worker.end()


@pytest.mark.parametrize(("work_s", "joules"), [(2.6, pytest.approx(30 * 2.6, rel=0.2)), (0.2, None)])
async def test_the_record_has_the_energy_of_the_work(
    tmp_path: Path, announced: RoundOpen, work: Work, work_s: float, joules: float | None
) -> None:
    root = copy_of("x86-rapl", tmp_path)
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("0")
    worker, instruments = working_for(root, work_s), find_instruments(root)

    def new_sampler() -> Sampler:
        return Sampler(lambda: worker.pid, instruments=instruments, hardware="cpu", root=root)

    use = (await finish(worker, new_sampler, announced, work)).record.use
    assert use is not None
    assert use.energy.joules == joules
    assert use.energy.scope == "package"
    if joules is None:
        assert use.energy.reason.startswith("window too short")
    else:
        assert use.samples >= 5
        assert use.energy.method == "rapl"
        assert use.worker_peak_resident_bytes


async def test_a_sensor_that_hangs_costs_its_figures_and_not_the_work(
    tmp_path: Path, announced: RoundOpen, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_work, "_SENSOR_PATIENCE_S", 0.2)
    root = copy_of("x86-rapl", tmp_path)
    worker, instruments, answer = working_for(root, 0.1), find_instruments(root), threading.Event()

    class Hanging(Sampler):
        def look(self) -> None:
            answer.wait(20)

    def new_sampler() -> Sampler:
        return Hanging(lambda: worker.pid, instruments=instruments, root=root)

    try:
        record = (await finish(worker, new_sampler, announced, work)).record
    finally:
        answer.set()
    assert (record.rank, record.use) == (4, None)


async def test_the_use_of_interrupted_work_is_that_of_all_its_pieces(
    tmp_path: Path, announced: RoundOpen, work: Work
) -> None:
    mark = tmp_path / "was here"
    program = tmp_path / "worker.py"
    program.write_text(
        "import pathlib, sys, time\n"
        f"sys.stdin.readline(); mark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n"
        "    mark.touch(); assert 'suspend' in sys.stdin.readline()\n"
        f"    print({json.dumps(SUSPENDED)!r}, flush=True)\n"
        "else:\n"
        "    time.sleep(0.3)\n"
        f"    print({json.dumps(FINISHED)!r}, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    worker = WorkerProcess(silence_s=20.0, command=(sys.executable, str(program)))
    readings = iter([20.0, 20.0, 20.0, 99.0, 99.0, 99.0, 99.0])  # °C, a tenth of a second each

    def conditions() -> Conditions:
        return dataclasses.replace(read_conditions(tmp_path), temperature_c=next(readings, 20.0))

    guard = Guard(Eligibility(on_battery=True, max_temperature_c=80.0, check_every_s=0.1), conditions)
    began: list[Sampler] = []

    def new_sampler() -> Sampler:
        began.append(Sampler(lambda: worker.pid, root=tmp_path))
        return began[-1]

    use = (await finish(worker, new_sampler, announced, work, guard)).record.use
    assert use is not None
    first, second = (sampler.use() for sampler in began)
    assert first.samples > 0
    assert use.samples == first.samples + second.samples
    assert 0.5 < use.window_s < first.window_s, "the pause of the first piece's clock is nobody's work"
