"""A machine as a plan sees it, from the profile that a device measured or that it emulates."""

from __future__ import annotations

from edgefed.devices.compute import LEFT_OUT, ComputeProfile, DataType
from edgefed.devices.measurement import Measurement
from edgefed.devices.profile import DeviceProfile
from edgefed.errors import ConfigError
from edgefed.planner.values import QUANTIZATIONS, Machine
from edgefed.protocol.tasks import Quantization

__all__ = ["SHEET_SHARE", "machine_of"]

SHEET_SHARE = 0.5
"""Share of a sheet's dense peak that large matrix products are taken to reach on a board that is only emulated.

An assumption: arXiv 2310.03150 and our own runs see less than the peak everywhere. On a real machine the measured rate
takes its place.
"""


_NATIVE = 1.5
"""bf16 that is so much faster than fp32 has hardware of its own; less may be what else the machine did just then."""


def machine_of(profile: DeviceProfile) -> Machine:
    """Returns what a plan may use of a device.

    A precision that was not measured, as in a quick profile, is taken to run at the rate of the type that its weights
    are dequantized to; one that was measured and failed is not available.

    Raises:
        ConfigError: the profile has no memory, or no rate for any precision; says how to get one.
    """
    compute, memory = profile.compute, profile.memory
    if compute is None or memory is None:
        why = "; ".join(f"{part}: {reason}" for part, reason in profile.why_null.items())
        raise ConfigError(f"this device was not measured{f' ({why})' if why else ''}; run `edgefed profile` first")
    share = SHEET_SHARE if profile.emulated else 1.0
    rates: dict[Quantization, float] = {}
    unavailable: dict[Quantization, str] = {}
    for name in QUANTIZATIONS:
        rate = _rate(compute, name)
        if rate.value is None:
            unavailable[name] = rate.reason
        else:
            rates[name] = rate.value * share
    bandwidth = compute.memory_bandwidth_bytes_per_s
    if not rates or bandwidth.value is None:
        why = "; ".join(f"{name}: {reason}" for name, reason in unavailable.items()) or bandwidth.reason
        raise ConfigError(f"nothing is known to run on this device: {why}")
    network = profile.network
    return Machine(
        name=_name(profile),
        hardware=compute.hardware,
        memory_kind=memory.kind,
        memory_available_bytes=memory.available_bytes,
        memory_total_bytes=memory.total_bytes,
        flops_per_s=rates,
        memory_bandwidth_bytes_per_s=bandwidth.value * share,
        unavailable=unavailable,
        storage_free_bytes=profile.disk_free_bytes,
        uplink_bytes_per_s=network.uplink_bytes_per_s.value if network else None,
        downlink_bytes_per_s=network.downlink_bytes_per_s.value if network else None,
        native_bf16=rates.get("bf16", 0.0) > _NATIVE * rates.get("fp32", 0.0),
        own_limit=memory.host.limited_by == "cgroup" and not profile.emulated,
        emulated=profile.emulated,
    )


def _rate(compute: ComputeProfile, quantization: Quantization) -> Measurement:
    found = compute.flops_per_s.get(quantization)
    if found is not None and (found.value is not None or found.reason != LEFT_OUT):
        return found
    within: DataType = "fp32"
    if compute.hardware == "cuda" and (bf16 := compute.flops_per_s.get("bf16")) and bf16.value is not None:
        within = "bf16"
    return compute.flops_per_s.get(within) or Measurement(reason="it was not measured")


def _name(profile: DeviceProfile) -> str:
    mode = profile.power.mode if profile.power else None
    name = profile.board or profile.model or (profile.gpu.name if profile.gpu else None) or profile.host
    return name + (f" in {mode}" if mode else "") + (" (emulated)" if profile.emulated else "")
