"""A device's profile over its life: measured once, remembered, and measured again when the machine has changed."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from edgefed.agent.frames import Probed, encode_frame
from edgefed.agent.machine_identity import Identity, identify
from edgefed.agent.options import AgentOptions, Limits, Worker
from edgefed.agent.profiler import Profiler
from edgefed.agent.worker_process import WorkerProcess
from edgefed.data.source import DataSource
from edgefed.devices.compute import LEFT_OUT, ComputeProfile, MachineProbe
from edgefed.devices.instruments import Instruments
from edgefed.devices.measurement import absent, measured
from edgefed.devices.power.base import Found
from edgefed.devices.power.rapl import find_rapl
from edgefed.devices.profile import DeviceProfile
from edgefed.devices.sensors import AbsentSensor
from tests.shared.power_reader_suite import copy_of

FULL = MachineProbe(
    compute=ComputeProfile(
        hardware="cpu",
        threads=2,
        flops_per_s={"fp32": measured(2e11, "full"), "nf4": measured(1e11, "full"), "int8": absent("no kernel")},
        memory_bandwidth_bytes_per_s=measured(1e10, "copy"),
    ),
    why_no_gpu="there is no NVIDIA driver on this machine",
)
QUICK = msgspec.structs.replace(
    FULL,
    compute=msgspec.structs.replace(
        FULL.compute,
        flops_per_s={"fp32": measured(3e11, "quick"), "nf4": absent(LEFT_OUT), "int8": absent(LEFT_OUT)},
    ),
)


def options(tmp_path: Path, **fields: object) -> AgentOptions:
    root = tmp_path / "root"
    (root / "var/lib/nvpmodel").mkdir(parents=True, exist_ok=True)
    return AgentOptions(device="a", fleet="test", root=str(root), data=DataSource(path="none"), **fields)  # type: ignore[arg-type]


def worker(tmp_path: Path, answer: MachineProbe | str) -> WorkerProcess:
    """Returns a real process that answers every request with what a worker measured, or fails with a word."""
    line = (
        encode_frame(Probed(machine=answer)).decode()
        if isinstance(answer, MachineProbe)
        else f'{{"type":"failed","kind":"model","message":"{answer}"}}\n'
    )
    program = tmp_path / "worker.py"
    program.write_text(f"import sys\nfor _ in sys.stdin:\n    sys.stdout.write({line!r})\n    sys.stdout.flush()\n")
    return WorkerProcess(silence_s=20.0, command=(sys.executable, str(program)))


def profiler(tmp_path: Path, answer: MachineProbe | str = FULL, **fields: object) -> Profiler:
    directory = tmp_path / "state"
    directory.mkdir(exist_ok=True)
    return Profiler(options(tmp_path, **fields), directory, worker(tmp_path, answer), None, offline="no broker")


def set_power_mode(tmp_path: Path, number: int) -> None:
    (tmp_path / "root/var/lib/nvpmodel/status").write_text(f"pmode:{number:04d}")


def rates(profile: DeviceProfile) -> dict[str, float | None]:
    assert profile.compute is not None
    return {name: rate.value for name, rate in profile.compute.flops_per_s.items()}


async def test_before_anything_was_measured_every_null_has_its_reason(tmp_path: Path) -> None:
    one = profiler(tmp_path)
    assert one.reasons_to_measure() == ["it was never measured"]
    profile = one.profile()
    for part in ("gpu", "compute", "storage", "network"):
        assert getattr(profile, part) is None
        assert profile.why_null[part]
    assert profile.why_null["network"] == "no broker"
    assert profile.memory is not None, "what is read at once is there at once"


async def test_what_was_measured_is_remembered_by_the_next_agent(tmp_path: Path) -> None:
    steps: list[str] = []
    first = await profiler(tmp_path).measure(on_step=steps.append)
    assert steps[0] == "storage"
    assert rates(first)["fp32"] == 2e11
    assert first.storage is not None
    assert first.why_null["gpu"] == "there is no NVIDIA driver on this machine"
    later = profiler(tmp_path, "nobody shall ask it")
    assert later.reasons_to_measure() == []
    assert rates(later.profile()) == rates(first)
    assert later.profile().measured_unix_s == first.measured_unix_s
    known = later.profile()
    assert msgspec.json.decode(msgspec.json.encode(known), type=DeviceProfile) == known


async def test_a_new_power_mode_is_a_reason_to_measure_again(tmp_path: Path) -> None:
    one = profiler(tmp_path)
    set_power_mode(tmp_path, 0)
    await one.measure()
    assert one.profile().power is not None
    assert one.profile().power.mode == "mode 0"  # type: ignore[union-attr]
    set_power_mode(tmp_path, 2)
    assert one.reasons_to_measure() == ["power mode was 'mode 0', is 'mode 2'"]


async def test_other_options_of_the_owner_are_a_reason_to_measure_again(tmp_path: Path) -> None:
    await profiler(tmp_path).measure()
    changed = profiler(tmp_path, limits=Limits(threads=1), worker=Worker(device="cpu"))
    assert changed.reasons_to_measure() == ["hardware was 'auto', is 'cpu'", "threads was 'none', is 1"]


def test_every_part_of_the_identity_counts(tmp_path: Path) -> None:
    now = identify(options(tmp_path))
    for name in Identity.__struct_fields__:
        value = getattr(now, name)
        other = [*value, "another"] if isinstance(value, list) else value + (1 if isinstance(value, int) else "x")
        (reason,) = msgspec.structs.replace(now, **{name: other}).changes_since(now)
        assert reason.startswith(name.replace("_", " "))


async def test_a_hurried_measurement_is_completed_from_an_earlier_full_one(tmp_path: Path) -> None:
    await profiler(tmp_path, FULL).measure()
    profile = await profiler(tmp_path, QUICK).measure(quick=True)
    assert rates(profile) == {"fp32": 3e11, "nf4": 1e11, "int8": None}
    assert not profile.quick
    assert profile.compute is not None
    assert profile.compute.flops_per_s["int8"].reason == "no kernel"


async def test_a_hurried_measurement_is_not_completed_from_another_power_mode(tmp_path: Path) -> None:
    set_power_mode(tmp_path, 0) if (tmp_path / "root").exists() else options(tmp_path)
    set_power_mode(tmp_path, 0)
    await profiler(tmp_path, FULL).measure()
    set_power_mode(tmp_path, 1)
    hurried = profiler(tmp_path, QUICK)
    profile = await hurried.measure(quick=True)
    assert rates(profile)["nf4"] is None
    assert profile.quick
    assert hurried.reasons_to_measure() == ["it was measured in a hurry"]


async def test_a_worker_that_fails_leaves_nulls_with_its_reason(tmp_path: Path) -> None:
    one = profiler(tmp_path, "device 'cuda' was asked for, and torch finds none")
    profile = await one.measure()
    assert profile.compute is None
    assert "torch finds none" in profile.why_null["compute"]
    assert profile.storage is not None
    assert one.reasons_to_measure()[0].startswith("measuring failed: device 'cuda'")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"identity":{}}', b"[" * 10000])
async def test_a_damaged_memory_is_no_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/profile.json").write_bytes(content)
    assert profiler(tmp_path).reasons_to_measure() == ["it was never measured"]


@pytest.fixture
async def real_worker() -> AsyncIterator[WorkerProcess]:
    worker = WorkerProcess(silence_s=60.0)
    yield worker
    await worker.end()


@pytest.mark.torch
async def test_the_real_worker_measures_this_machine(tmp_path: Path, real_worker: WorkerProcess) -> None:
    steps: list[str] = []
    owner = options(tmp_path, limits=Limits(threads=1), worker=Worker(device="cpu"))
    one = Profiler(owner, tmp_path, real_worker, None)
    profile = await one.measure(quick=True, on_step=steps.append)
    assert rates(profile)["fp32"] is not None
    assert profile.compute is not None
    assert (profile.compute.hardware, profile.compute.threads) == ("cpu", 1)
    assert profile.compute.flops_per_s["nf4"].reason == LEFT_OUT
    assert profile.why_null["gpu"] == "the owner set worker.device to cpu"
    assert profile.quick
    assert "memory bandwidth (6 of 6)" in steps
    assert real_worker.pid is None, "what it held must not count as used by others"


async def test_the_profile_tells_the_power_sensors_and_which_is_used(tmp_path: Path) -> None:
    packages = find_rapl(copy_of("x86-rapl", tmp_path / "tree"))
    locked = AbsentSensor(name="NVML", reason="NVML says: Not Supported")
    one = Profiler(
        options(tmp_path),
        tmp_path,
        worker(tmp_path, FULL),
        None,
        instruments=Instruments(power=Found(readers=packages.readers, absent=(locked,))),
    )
    assert one.hardware is None
    profile = await one.measure()
    assert one.hardware == "cpu"
    assert profile.power is not None
    assert [(sensor.name, sensor.method, sensor.used) for sensor in profile.power.sensors] == [("RAPL", "rapl", True)]
    assert profile.power.absent == (locked,)
