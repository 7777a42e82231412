"""What an NVIDIA GPU can do in a clock cycle: from it and the live clock follows a peak that no data sheet tells.

A Jetson's power mode switches streaming multiprocessors (SMs) off and caps their clock, so the data sheet's peak holds
in one mode only. peak = SMs × clock × operations per clock and SM holds in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["RateType", "flops_per_clock_per_sm", "peak_flops_per_s"]

RateType = Literal["fp32", "bf16", "fp16", "int8"]

# Dense operations, a multiplication and an addition counted as two. fp32 is that of the CUDA cores: TF32 is another
# type. fp16 and bf16 are those of the tensor cores with fp32 accumulation, which is what training uses; before compute
# capability 7.0 there are none, and fp16 is the packed rate of the CUDA cores. int8 is that of the tensor cores.
# Every row was derived from a published peak, as NVIDIA gives no such table for all of them: 5.3 Jetson Nano (1 SM,
# 0.9216 GHz, 0.47 TFLOPS), 6.2 TX2 (2, 1.30, 1.33), 7.2 AGX Xavier (8, 1.377, 11.3), 8.0 A100 (108, 1.41, 312), 8.6
# RTX 3060 (28, 1.777, 25.5), 8.7 AGX Orin (16, 1.3005, 85 TOPS of int8), 8.9 RTX 4090 (128, 2.52, 165.2), 9.0 H100
# SXM (132, 1.83, 989), 11.0 Thor (20, 1.575, 258.5), 12.0 RTX 5090 (170, 2.407, 209.5). Thor's int8 is twice its fp16
# by analogy: nobody has published it. GeForce tensor cores halve their rate when they accumulate in fp32.
_PER_CLOCK: Mapping[float, Mapping[RateType, int]] = {
    5.3: {"fp32": 256, "fp16": 512},
    6.2: {"fp32": 256, "fp16": 512},
    7.2: {"fp32": 128, "fp16": 1024, "int8": 2048},
    8.0: {"fp32": 128, "fp16": 2048, "bf16": 2048, "int8": 4096},
    8.6: {"fp32": 256, "fp16": 512, "bf16": 512, "int8": 2048},
    8.7: {"fp32": 256, "fp16": 2048, "bf16": 2048, "int8": 4096},
    8.9: {"fp32": 256, "fp16": 512, "bf16": 512, "int8": 2048},
    9.0: {"fp32": 256, "fp16": 4096, "bf16": 4096, "int8": 8192},
    11.0: {"fp32": 256, "fp16": 8192, "bf16": 8192, "int8": 16384},
    12.0: {"fp32": 256, "fp16": 512, "bf16": 512, "int8": 2048},
}


def flops_per_clock_per_sm(compute_capability: float, data_type: RateType) -> int | None:
    """Returns the dense operations that one SM does in a clock cycle.

    None where GPUs of that compute capability do not multiply this type, or where the capability is not known here.
    """
    return _PER_CLOCK.get(compute_capability, {}).get(data_type)


def peak_flops_per_s(sm_count: int, clock_hz: float, compute_capability: float, data_type: RateType) -> float | None:
    """Returns the peak of a GPU with so many powered SMs at that clock, in operations per second; None as above."""
    rate = flops_per_clock_per_sm(compute_capability, data_type)
    return None if rate is None else sm_count * clock_hz * rate
