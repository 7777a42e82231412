"""How long a plan takes: a roofline of one training step from measured rates, and the transfers over a measured link.

A step is the matrix products at the rate that was measured for their precision, plus everything else (norms, dropout,
softmax, residuals) as so many times the traffic of what the backward pass keeps, plus the calls of operators, plus, for
a quantized base, making its weights whole for every product: what a measured quantized layer takes longer than a plain
one. The constants are fitted in `benchmarks/plan_prediction`, which also says how well the whole predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from edgefed.models.flops import Adaptation, StepFlops, step_flops
from edgefed.models.layout import ModelLayout
from edgefed.planner.memory import UNQUANTIZED, activation_bytes
from edgefed.planner.values import Choice, Hardware, Machine, Workload
from edgefed.protocol.tasks import Precision

__all__ = [
    "FITTED_TIME",
    "FittedTime",
    "pass_seconds",
    "step_seconds",
    "time_bases",
    "transfer_seconds",
    "upload_bytes",
]

_BYTES: dict[Precision, float] = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
_ENVELOPE = 1.02
"""Headers, manifests and acknowledgements beside the factors."""


@dataclass(frozen=True, slots=True)
class FittedTime:
    """Constants of one kind of hardware.

    Attributes:
        traffic: times that what the backward pass keeps, in fp32, is moved through memory at the measured bandwidth;
            drawing dropout's random numbers is in it.
        operator_s: seconds of one operator's call, without its work.
        dequantize: share of what a measured quantized layer takes longer that its weights are the cause of.
    """

    traffic: float
    operator_s: float
    dequantize: float


FITTED_TIME: dict[Hardware, FittedTime] = {
    "cpu": FittedTime(traffic=20.95, operator_s=1.27e-5, dequantize=0.337),
    "cuda": FittedTime(traffic=6.0, operator_s=1e-5, dequantize=1.0),  # assumptions: no GPU was at hand
}
_ENCODER_OPERATORS, _DECODER_OPERATORS = 60, 100
_PROBED_TOKENS = 1024
"""Tokens that went through the quantized layer whose rate was measured; see `edgefed.training.probe`."""


def step_seconds(machine: Machine, workload: Workload, choice: Choice) -> float:
    """Returns the predicted seconds of one optimizer step, before any correction.

    Raises:
        KeyError: the machine has no rate for the precision.
    """
    passes = -(-workload.batch_size // choice.micro_batch_size)
    return passes * sum(pass_seconds(machine, workload, choice).values())


def pass_seconds(machine: Machine, workload: Workload, choice: Choice) -> dict[str, float]:
    """Returns the predicted seconds of one forward and backward pass, by where they go."""
    fitted, bases = FITTED_TIME[machine.hardware], time_bases(machine, workload, choice)
    return {
        "products": bases["products"],
        "traffic": fitted.traffic * bases["traffic"],
        "operators": fitted.operator_s * bases["operator_s"],
        "dequantization": fitted.dequantize * bases["dequantize"],
    }


def time_bases(machine: Machine, workload: Workload, choice: Choice) -> dict[str, float]:
    """Returns the seconds of the products, and what the constants of `FittedTime` are multiplied by, for one pass."""
    recomputed = choice.gradient_checkpointing
    flops = _flops(workload.layout, _adaptation(workload, choice), workload.source_tokens, workload.target_tokens)
    work = choice.micro_batch_size * (flops.model + (flops.recompute if recomputed else 0.0))
    rate = machine.flops_per_s[choice.quantization]
    plain = rate
    if choice.quantization in ("int8", "nf4"):
        plain = machine.flops_per_s.get("bf16" if machine.native_bf16 else "fp32", rate)
    layout = workload.layout
    weights = sum(one.rows * one.columns * one.count for one in layout.linears() if one.name != UNQUANTIZED)
    longer_s = 2 * _PROBED_TOKENS * max(0.0, 1 / rate - 1 / plain)  # for each weight and pass
    passes = 3 if recomputed else 2
    again = 4 / 3 if recomputed else 1.0  # a backward pass is two forward ones
    return {
        "products": work / plain,
        "traffic": again * activation_bytes(workload, choice) / machine.memory_bandwidth_bytes_per_s,
        "operator_s": again
        * 3
        * (_ENCODER_OPERATORS * layout.encoder_layers + _DECODER_OPERATORS * layout.decoder_layers),
        "dequantize": passes * weights * longer_s,
    }


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
