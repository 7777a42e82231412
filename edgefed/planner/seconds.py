"""How long a plan takes: a roofline of one training step from measured rates, and the transfers over a measured link.

A step is the matrix products at the rate that was measured for their precision, plus the traffic of everything else
(norms, activations, dropout, residuals) at the measured bandwidth, plus what every call of an operator costs, plus, for
a quantized base, turning its weights into numbers that can be multiplied, once forward and once backward. How many bytes
and operators that is was fitted in `benchmarks/step_time`, which also says how well it predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from edgefed.models.flops import Adaptation, StepFlops, step_flops
from edgefed.models.layout import ModelLayout
from edgefed.planner.memory import UNQUANTIZED, activation_bytes
from edgefed.planner.values import Choice, Hardware, Machine, Workload
from edgefed.protocol.tasks import Precision

__all__ = ["step_seconds", "transfer_seconds", "upload_bytes"]

_BYTES: dict[Precision, float] = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
_ENVELOPE = 1.02
"""Headers, manifests and acknowledgements beside the factors."""


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Constants of one kind of hardware.

    Attributes:
        traffic: times that what the backward pass keeps is moved through memory in a step.
        recompute_traffic: the same for activations that are recomputed.
        operator_s: seconds of one operator's call, without its work.
        dequantize: times that a quantized layer's full-size weights are moved in a pass.
    """

    traffic: float
    operator_s: float
    dequantize: float


_FITTED: dict[Hardware, _Fitted] = {
    "cpu": _Fitted(traffic=6.0, operator_s=2e-5, dequantize=6.0),
    "cuda": _Fitted(traffic=6.0, operator_s=1e-5, dequantize=3.0),
}


def step_seconds(machine: Machine, workload: Workload, choice: Choice) -> float:
    """Returns the predicted seconds of one optimizer step, before any correction.

    Raises:
        KeyError: the machine has no rate for the precision.
    """
    passes = -(-workload.batch_size // choice.micro_batch_size)
    return passes * sum(pass_seconds(machine, workload, choice).values())


def pass_seconds(machine: Machine, workload: Workload, choice: Choice) -> dict[str, float]:
    """Returns the predicted seconds of one forward and backward pass, by where they go."""
    fitted = _FITTED[machine.hardware]
    flops = _flops(workload.layout, _adaptation(workload, choice), workload.source_tokens, workload.target_tokens)
    products = choice.micro_batch_size * (flops.model + (flops.recompute if choice.gradient_checkpointing else 0.0))
    plain = "bf16" if choice.quantization == "bf16" or machine.native_bf16 else "fp32"
    rate = machine.flops_per_s.get("bf16" if plain == "bf16" else "fp32", machine.flops_per_s[choice.quantization])
    moved = activation_bytes(workload, choice)
    operators = _operators(workload, choice)
    seconds = {
        "products": products / rate,
        "traffic": fitted.traffic * moved / machine.memory_bandwidth_bytes_per_s,
        "operators": operators * fitted.operator_s,
    }
    if choice.quantization in ("int8", "nf4"):
        full = 4.0 * sum(
            one.rows * one.columns * one.count for one in workload.layout.linears() if one.name != UNQUANTIZED
        )
        passes = 3 if choice.gradient_checkpointing else 2
        seconds["dequantization"] = passes * fitted.dequantize * full / machine.memory_bandwidth_bytes_per_s
    return seconds


def transfer_seconds(machine: Machine, workload: Workload, choice: Choice) -> tuple[float | None, float | None]:
    """Returns the predicted seconds of the download and of the upload; None over a link that nobody measured."""
    down, up = machine.downlink_bytes_per_s, machine.uplink_bytes_per_s
    return (
        None if down is None else download_bytes(workload, choice) / down,
        None if up is None else upload_bytes(workload, choice) / up,
    )


def upload_bytes(workload: Workload, choice: Choice) -> float:
    """Returns the bytes of an update."""
    return _adapter_bytes(workload, choice.rank, workload.upload_precision)


def download_bytes(workload: Workload, choice: Choice) -> float:
    """Returns the bytes of the part of the global adapter that the device holds."""
    return _adapter_bytes(workload, choice.held_rank, workload.broadcast_precision)


def _adapter_bytes(workload: Workload, rank: int, precision: Precision) -> float:
    return (
        _ENVELOPE * _BYTES[precision] * workload.layout.lora_parameters(list(workload.target_modules), rank)
        if rank
        else 0.0
    )


def _adaptation(workload: Workload, choice: Choice) -> Adaptation:
    held_rank = choice.held_rank if workload.start == "frozen" else 0
    return Adaptation(tuple(workload.target_modules), choice.rank, held_rank)


@lru_cache(maxsize=1024)
def _flops(layout: ModelLayout, adaptation: Adaptation, source: int, target: int) -> StepFlops:
    return step_flops(layout, adaptation, source, target)


def _operators(workload: Workload, choice: Choice) -> int:
    """Returns how many operators a pass calls, about: those of a block, and those of every adapted layer."""
    layout = workload.layout
    blocks = 60 * layout.encoder_layers + 100 * layout.decoder_layers
    branches = 2 if workload.start == "frozen" and choice.held_rank else 1
    adapted = sum(one.count for one in layout.linears() if one.name in workload.target_modules)
    forward = blocks + 6 * branches * adapted
    return forward * (4 if choice.gradient_checkpointing else 3)
