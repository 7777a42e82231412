"""How fast a machine multiplies matrices and moves memory: values that `edgefed.training.probe` measures."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.devices.gpu import GpuProfile
from edgefed.devices.measurement import Measurement

__all__ = ["DATA_TYPES", "LEFT_OUT", "ComputeProfile", "DataType", "MachineProbe"]

DataType = Literal["fp32", "bf16", "fp16", "int8", "nf4"]
DATA_TYPES: tuple[DataType, ...] = ("fp32", "bf16", "fp16", "int8", "nf4")

LEFT_OUT = "left out of a quick measurement"
"""The reason of a rate that a quick measurement does not try."""


class ComputeProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Rates that were reached, not ones that were looked up: a kernel has run for each.

    Attributes:
        hardware: where the worker computes.
        threads: CPU threads that it computed with.
        flops_per_s: by data type. fp32, bf16 and fp16: dense square matrix products. int8 and nf4: forward and backward
            of a linear layer with bitsandbytes weights, the work that training does, dequantization included.
        memory_bandwidth_bytes_per_s: of a large copy; bytes read and bytes written both count.
        torch_version: that measured.
        bitsandbytes_version: null where it is not installed.
    """

    hardware: Literal["cpu", "cuda"]
    threads: Annotated[int, Meta(ge=1)]
    flops_per_s: dict[DataType, Measurement]
    memory_bandwidth_bytes_per_s: Measurement
    torch_version: str = ""
    bitsandbytes_version: str | None = None

    def best(self) -> tuple[DataType, float] | None:
        """Returns the data type with the highest rate, and that rate; None where nothing ran."""
        rates = [(rate.value, name) for name, rate in self.flops_per_s.items() if rate.value is not None]
        return max(((name, value) for value, name in rates), key=lambda pair: pair[1], default=None)


class MachineProbe(msgspec.Struct, frozen=True, kw_only=True):
    """What torch found out about a machine.

    Attributes:
        compute: the rates.
        gpu: that it computed on; null where it computed on the CPU.
        why_no_gpu: why it did; "" where there is one.
    """

    compute: ComputeProfile
    gpu: GpuProfile | None = None
    why_no_gpu: str = ""
