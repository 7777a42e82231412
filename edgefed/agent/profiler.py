"""Keeps a device's profile: measured at first start, remembered, and measured again when the machine has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from edgefed.agent.board_keeper import BoardKeeper, Yardstick
from edgefed.agent.frames import Probe, Progress
from edgefed.agent.machine_identity import Identity, identify
from edgefed.agent.network_probe import NetworkProbe
from edgefed.agent.options import AgentOptions
from edgefed.agent.worker_process import WorkerProcess
from edgefed.devices.compute import LEFT_OUT, DataType, MachineProbe
from edgefed.devices.instruments import Hardware, Instruments
from edgefed.devices.memory import HostMemory, read_host_memory, training_memory
from edgefed.devices.network import NetworkProfile, local_address
from edgefed.devices.power_mode import read_power_mode
from edgefed.devices.profile import DeviceProfile, read_profile
from edgefed.devices.sensors import read_thermal
from edgefed.devices.storage import StorageProfile, measure_storage
from edgefed.errors import EdgefedError
from edgefed.files import replace_file
from edgefed.protocol.tasks import Quantization

__all__ = ["Profiler", "Remembered"]

_log = logging.getLogger(__name__)

_QUICK_STORAGE_BYTES = 32 << 20
_QUICK_STORAGE_S = 0.3

OnStep = Callable[[str], None]
"""Called with what is measured next, in words."""


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept on disk.

    Attributes:
        identity: of the machine when it was measured.
        machine: what the worker measured; null where it failed, and `failed` says how.
        failed: why there are no rates.
        storage: where the state lies.
        measured_unix_s: when.
        quick: some rates were left out.
        network: as measured at `address`; null before it was tried.
        address: of this machine on the way to the broker, then.
    """

    identity: Identity
    machine: MachineProbe | None
    failed: str = ""
    storage: StorageProfile
    measured_unix_s: float
    quick: bool = False
    network: NetworkProfile | None = None
    address: str = ""


class Profiler:
    """A device's profile.

    Args:
        options: what the owner said.
        directory: where the profile is remembered; its storage is what is measured.
        worker: who measures rates.
        network: measures the way to the aggregator; None where there is no connection, and `offline` says why.
        offline: why there is none.
        instruments: the machine's sensors.
    """

    def __init__(
        self,
        options: AgentOptions,
        directory: Path,
        worker: WorkerProcess,
        network: NetworkProbe | None,
        *,
        offline: str = "",
        instruments: Instruments | None = None,
    ) -> None:
        self._options = options
        self._root = Path(options.root)
        self._directory = directory
        self._path = directory / "profile.json"
        self._worker = worker
        self._network = network
        self._offline = offline
        self._boards = BoardKeeper(options.emulate)
        self._instruments = instruments or Instruments()
        self._remembered = _read(self._path)
        self._way = self._remembered.network if self._remembered else None
        self._address = self._remembered.address if self._remembered else ""

    def reasons_to_measure(self) -> list[str]:
        """Returns why what is remembered does not describe this machine; [] where it does."""
        known = self._remembered
        if known is None:
            return ["it was never measured"]
        reasons = identify(self._options).changes_since(known.identity)
        if known.quick and self._options.profile.measure == "full":
            reasons.append("it was measured in a hurry")
        if known.machine is None:
            reasons.append(f"measuring failed: {known.failed}")
        return reasons

    @property
    def hardware(self) -> Hardware | None:
        """What the worker computed on when it was measured; None where it was not."""
        machine = self._remembered.machine if self._remembered else None
        return machine.compute.hardware if machine else None

    def yardstick(self, quantization: Quantization) -> Yardstick:
        """Returns what the work with a base of this precision is related to.

        bitsandbytes' int8 and NF4 weights are dequantized to fp32 on a CPU and to bf16 on a GPU that has it, and
        multiplied there.
        """
        profile = self._measured()
        rates = profile.compute.flops_per_s if profile.compute else {}
        kinds: tuple[DataType, ...] = ("fp32",)
        if quantization == "bf16":
            kinds = ("bf16",)
        elif quantization != "fp32" and profile.compute is not None and profile.compute.hardware == "cuda":
            kinds = ("bf16", "fp32")
        ran = [kind for kind in kinds if kind in rates and rates[kind].value is not None]
        return self._boards.yardstick(profile, next(iter(ran), kinds[0]))

    def network_is_due(self) -> bool:
        """Whether the network was never measured, gave nothing, or is another one now. Looks the broker's name up."""
        if self._network is None:
            return False
        return self._way is None or self._way.latency_s.value is None or self._address != self._find_address()

    async def measure(self, *, quick: bool = False, on_step: OnStep = lambda _: None) -> DeviceProfile:
        """Measures everything but the network, remembers it, and returns the profile.

        A worker that fails leaves nulls with its reason; it is tried again at the next look. It is ended afterwards:
        what it holds must not count as memory that others use.
        """
        on_step("storage")
        if quick:  # while the worker loads torch, the storage has nothing else to do
            size_bytes, budget_s = _QUICK_STORAGE_BYTES, _QUICK_STORAGE_S
            measuring = asyncio.to_thread(measure_storage, self._directory, size_bytes=size_bytes, budget_s=budget_s)
            storage, (machine, failed) = await asyncio.gather(measuring, self._ask_the_worker(quick, on_step))
        else:
            storage = await asyncio.to_thread(measure_storage, self._directory)
            machine, failed = await self._ask_the_worker(quick, on_step)
        await self._worker.end()
        identity, known = identify(self._options), self._remembered
        if machine is not None and known is not None and known.machine is not None and known.identity == identity:
            machine = _completed(machine, known.machine)
        self._remembered = Remembered(
            identity=identity,
            machine=machine,
            failed=failed,
            storage=storage,
            measured_unix_s=time.time(),
            quick=machine is not None and LEFT_OUT in [rate.reason for rate in machine.compute.flops_per_s.values()],
        )
        self._keep()
        return self.profile()

    async def measure_network(self, *, quick: bool = False, on_step: OnStep = lambda _: None) -> DeviceProfile:
        """Measures the way to the aggregator, remembers it, and returns the profile."""
        if self._network is not None:
            on_step("network")
            self._way = await (
                self._network.measure(patience_s=0.5, burst_bytes=1 << 18, burst_s=0.2)
                if quick
                else self._network.measure()
            )
            self._address = await asyncio.to_thread(self._find_address)
            self._keep()
        return self.profile()

    def profile(self) -> DeviceProfile:
        """Returns the profile as it is known now: what changes by itself is read anew, the rates are the remembered.

        Where the owner has the machine play a board, it is the board's, and what was measured stands under `real`.
        """
        return self._boards.play(self._boards.recognize(self._measured()))

    def _measured(self) -> DeviceProfile:
        limits, known = self._options.limits, self._remembered
        profile = read_profile(
            self._directory, quantization=limits.quantization, max_rank=limits.max_rank, root=self._root
        )
        why_null = dict(profile.why_null)
        machine = known.machine if known else None
        gpu = machine.gpu if machine else None
        not_measured = known.failed if known else "it was not measured yet"
        if machine is None:
            why_null |= {"compute": not_measured, "gpu": not_measured}
        elif gpu is None:
            why_null["gpu"] = machine.why_no_gpu
        if known is None:
            why_null["storage"] = not_measured
        if self._way is None:
            why_null["network"] = self._offline or "it was not measured yet"
        mode, mode_reason = read_power_mode(self._root)
        return msgspec.structs.replace(
            profile,
            memory=training_memory(self._host_memory(), gpu),
            gpu=gpu,
            compute=machine.compute if machine else None,
            storage=known.storage if known else None,
            power=self._instruments.power_profile(mode, mode_reason, self.hardware),
            thermal=read_thermal(self._root),
            network=self._way,
            why_null=why_null,
            measured_unix_s=known.measured_unix_s if known else None,
            quick=known.quick if known else False,
        )

    async def _ask_the_worker(self, quick: bool, on_step: OnStep) -> tuple[MachineProbe | None, str]:
        def on_progress(progress: Progress) -> None:
            on_step(f"{progress.what} ({progress.step} of {progress.steps})")

        on_step("starting the worker")
        request = Probe(hardware=self._options.worker.device, threads=self._options.limits.threads, quick=quick)
        try:
            return (await self._worker.probe(request, on_progress)).machine, ""
        except EdgefedError as error:
            _log.warning("this machine could not be measured: %s", error)
            return None, str(error)

    def _host_memory(self) -> HostMemory:
        """Returns the host's memory; what a warm worker holds is available to training."""
        host = read_host_memory(self._root)
        held_bytes = 0
        if self._worker.pid is not None:
            with contextlib.suppress(psutil.Error):
                memory = psutil.Process(self._worker.pid).memory_info()
                held_bytes = memory.rss - memory.shared
        return msgspec.structs.replace(host, available_bytes=min(host.total_bytes, host.available_bytes + held_bytes))

    def _find_address(self) -> str:
        return local_address(self._options.broker.host, self._options.broker.port)

    def _keep(self) -> None:
        if self._remembered is not None:
            self._remembered = msgspec.structs.replace(self._remembered, network=self._way, address=self._address)
            with contextlib.suppress(OSError):  # a full disk costs the next start a measurement, and no more
                replace_file(self._path, [msgspec.json.encode(self._remembered)])


def _completed(machine: MachineProbe, before: MachineProbe) -> MachineProbe:
    """Returns a measurement with what was left out in a hurry filled in from an earlier one of the same machine."""
    rates = {
        name: before.compute.flops_per_s.get(name, rate) if rate.reason == LEFT_OUT else rate
        for name, rate in machine.compute.flops_per_s.items()
    }
    return msgspec.structs.replace(machine, compute=msgspec.structs.replace(machine.compute, flops_per_s=rates))


def _read(path: Path) -> Remembered | None:
    """Returns what was remembered; None where there is nothing, or nothing that this version understands."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Remembered)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
