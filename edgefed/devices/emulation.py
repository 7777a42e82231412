"""One machine plays another: the figures that a plan looks at come from a board's sheet, marked as such.

What was measured stays in the profile under `real`, so that nobody takes a sheet for a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from edgefed.devices.compute import ComputeProfile, DataType
from edgefed.devices.gpu import GpuProfile
from edgefed.devices.measurement import Measurement, absent, measured
from edgefed.devices.memory import MemoryProfile
from edgefed.devices.network import NetworkProfile, unmeasured_network
from edgefed.devices.profile import DeviceProfile, RealParts
from edgefed.devices.sensors import PowerProfile

__all__ = ["Sheet", "emulate", "real_profile"]


_REPLACED = ("board", "memory", "gpu", "compute", "network")
"""Parts of a profile that become the board's."""


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """A board in one power mode, as its sheet has it.

    Attributes:
        board: its id.
        power_mode: the mode that the rates hold in; null where it has none.
        memory_kind: as in `MemoryProfile`.
        memory_total_bytes: that user space sees.
        memory_bandwidth_bytes_per_s: peak.
        flops_per_s: dense peaks by data type; int8 and nf4 need not be there, as they compute in another type.
        gpu_name: null where it computes on the CPU.
        compute_capability: of the GPU.
        sm_count: that are powered in this mode.
        gpu_clock_hz: cap in this mode.
        cores: of the processor.
    """

    board: str
    power_mode: str | None
    memory_kind: Literal["unified", "discrete", "host"]
    memory_total_bytes: int
    memory_bandwidth_bytes_per_s: float
    flops_per_s: Mapping[DataType, float]
    gpu_name: str | None = None
    compute_capability: float | None = None
    sm_count: int | None = None
    gpu_clock_hz: float | None = None
    cores: int = 1

    @property
    def source(self) -> str:
        """Where the figures come from, in words."""
        return f"sheet of {self.board}" + (f" in {self.power_mode}" if self.power_mode else "")


def emulate(
    profile: DeviceProfile,
    sheet: Sheet,
    *,
    memory_available_bytes: int | None = None,
    uplink_bits_per_s: float | None = None,
    downlink_bits_per_s: float | None = None,
) -> DeviceProfile:
    """Returns the profile of a machine that plays a board.

    Args:
        profile: what was measured.
        sheet: of the board.
        memory_available_bytes: of the board's memory, before any reserve; by default all that user space sees.
        uplink_bits_per_s: of the board's network; by default what was measured here.
        downlink_bits_per_s: likewise.
    """
    available = sheet.memory_total_bytes if memory_available_bytes is None else memory_available_bytes
    power = profile.power or PowerProfile()
    return msgspec.structs.replace(
        profile,
        emulated=sheet.board,
        board=sheet.board,
        memory=_memory(profile, sheet, min(available, sheet.memory_total_bytes)),
        gpu=_gpu(sheet, available),
        compute=_compute(sheet),
        network=_network(profile.network, uplink_bits_per_s, downlink_bits_per_s),
        power=msgspec.structs.replace(
            power,
            mode=sheet.power_mode,
            mode_reason="" if sheet.power_mode else f"{sheet.board} has no power modes",
        ),
        why_null=_reasons(profile, sheet),
        real=RealParts(
            board=profile.board,
            memory=profile.memory,
            gpu=profile.gpu,
            compute=profile.compute,
            network=profile.network,
            power_mode=power.mode,
        ),
    )


def real_profile(profile: DeviceProfile) -> DeviceProfile:
    """Returns the profile of the machine itself, whatever board it plays."""
    real = profile.real
    if profile.emulated is None or real is None:
        return profile
    power = profile.power or PowerProfile()
    return msgspec.structs.replace(
        profile,
        emulated=None,
        real=None,
        board=real.board,
        memory=real.memory,
        gpu=real.gpu,
        compute=real.compute,
        network=real.network,
        power=msgspec.structs.replace(power, mode=real.power_mode),
        why_null={name.removeprefix("real."): why for name, why in profile.why_null.items() if name not in _REPLACED},
    )


def _reasons(profile: DeviceProfile, sheet: Sheet) -> dict[str, str]:
    """Returns why parts are null: the board's own gaps, those of the real machine under `real.`."""
    reasons = {(f"real.{name}" if name in _REPLACED else name): why for name, why in profile.why_null.items()}
    if sheet.gpu_name is None:
        reasons["gpu"] = f"{sheet.board} computes on its CPU"
    return reasons


def _memory(profile: DeviceProfile, sheet: Sheet, available_bytes: int) -> MemoryProfile | None:
    if profile.memory is None:
        return None
    return MemoryProfile(
        kind=sheet.memory_kind,
        total_bytes=sheet.memory_total_bytes,
        available_bytes=available_bytes,
        host=profile.memory.host,
        method=sheet.source,
    )


def _gpu(sheet: Sheet, available_bytes: int) -> GpuProfile | None:
    if sheet.gpu_name is None or sheet.compute_capability is None:
        return None
    clock = absent(f"the {sheet.source} has none")
    return GpuProfile(
        name=sheet.gpu_name,
        compute_capability=sheet.compute_capability,
        integrated=sheet.memory_kind == "unified",
        memory_total_bytes=sheet.memory_total_bytes,
        memory_free_bytes=available_bytes,
        sm_count=sheet.sm_count or 1,
        clock_hz=clock if sheet.gpu_clock_hz is None else measured(sheet.gpu_clock_hz, sheet.source),
    )


def _compute(sheet: Sheet) -> ComputeProfile:
    rates: dict[DataType, Measurement] = {}
    floating: tuple[DataType, ...] = ("fp32", "bf16", "fp16")
    for name in floating:
        peak = sheet.flops_per_s.get(name)
        nothing = absent(f"{sheet.board} has no {name}")
        rates[name] = nothing if peak is None else measured(peak, f"{sheet.source}, peak")
    rates["int8"] = _dequantized("int8", 7.5, sheet, rates)
    rates["nf4"] = _dequantized("nf4", 6.0, sheet, rates)
    return ComputeProfile(
        hardware="cpu" if sheet.gpu_name is None else "cuda",
        threads=sheet.cores,
        flops_per_s=rates,
        memory_bandwidth_bytes_per_s=measured(sheet.memory_bandwidth_bytes_per_s, f"{sheet.source}, peak"),
    )


def _dequantized(name: str, least: float, sheet: Sheet, rates: Mapping[DataType, Measurement]) -> Measurement:
    """Returns the rate of a quantized layer: bitsandbytes turns its weights into the type that it computes in."""
    capability = sheet.compute_capability
    if capability is not None and capability < least:
        return absent(f"{name} needs compute capability {least}, and {sheet.board} has {capability}")
    within: DataType = "bf16" if capability is not None and capability >= 8.0 else "fp32"
    rate = rates[within]
    if rate.value is None:
        return absent(f"{name} computes in {within}, and {rate.reason}")
    return measured(rate.value, f"{sheet.source}, peak of {within}, in which {name} computes")


def _network(real: NetworkProfile | None, up_bits_per_s: float | None, down_bits_per_s: float | None) -> NetworkProfile:
    network = real or unmeasured_network("it was not measured yet")
    if up_bits_per_s is not None:
        rate = measured(up_bits_per_s / 8, "set by the owner to be emulated")
        network = msgspec.structs.replace(network, uplink_bytes_per_s=rate)
    if down_bits_per_s is not None:
        rate = measured(down_bits_per_s / 8, "set by the owner to be emulated")
        network = msgspec.structs.replace(network, downlink_bytes_per_s=rate)
    return network
