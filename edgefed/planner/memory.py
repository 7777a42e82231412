"""How much memory a plan takes, part by part, before anything is loaded.

What autograd keeps for the backward pass was counted with torch's saved-tensor hooks on models of many shapes (torch
2.13, transformers 5.23, peft 0.21) and comes out as whole numbers of copies. The network is T5 with dropout on, as
FLAN-T5's configuration has it; on a CPU that also rules out torch's fused attention, so that three copies of every
score stay (softmax, dropout's noise, their product). Where dropout is off the scores are not kept at all.

What no count can give, the libraries and the holes that the C library's allocator leaves between what lives long and
what does not, is fitted in `benchmarks/plan_prediction`, which also says how well the whole predicts. On CUDA the
counts are the same, torch's own allocator leaves few holes, and the constants are assumptions: no GPU was at hand.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from edgefed.models.layout import Linear, ModelLayout
from edgefed.planner.values import Choice, Hardware, MemoryEstimate, Workload
from edgefed.protocol.tasks import Quantization

__all__ = [
    "FITTED",
    "UNQUANTIZED",
    "Fitted",
    "activation_bytes",
    "parts_of",
    "peak_memory",
    "slack_bases",
    "weight_bytes",
]

_FP32 = 4
_NF4_BLOCK, _NF4_NESTED_BLOCK = 64, 256
UNQUANTIZED = "wo"
"""transformers keeps the last feed-forward layer of a T5 out of quantization, for it overflows easily."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Constants of one kind of hardware, from `benchmarks/plan_prediction/fit.py`.

    Attributes:
        libraries_bytes: Python, torch, transformers, peft and the tokenizer, with what the first step adds to them.
        kept_slack: holes, as a share of what is kept for the backward pass.
        wide_slack: the same on top of it where quantized feed-forward layers are adapted: their weights are made whole
            for every product, and what is kept of it lies in between.
        recompute_slack: holes where activations are recomputed, in working spaces of one block.
        dequantize_slack: holes that whole weights leave anyway, as a share of all of them.
    """

    libraries_bytes: int
    kept_slack: float
    wide_slack: float
    recompute_slack: float
    dequantize_slack: float


FITTED: dict[Hardware, Fitted] = {
    "cpu": Fitted(
        libraries_bytes=583_000_000, kept_slack=0.232, wide_slack=0.242, recompute_slack=6.05, dequantize_slack=0.174
    ),
    "cuda": Fitted(
        libraries_bytes=500_000_000, kept_slack=0.1, wide_slack=0.0, recompute_slack=1.0, dequantize_slack=0.0
    ),
}
_LOADING_BYTES = 445_000_000
_LOADING_QUANTIZED_BYTES = 75_000_000
_LOADING_QUANTIZED_SHARE = 0.1
_UNIFIED_LIBRARIES_BYTES = 1_200_000_000
"""Where the GPU shares the host's memory its context and the CUDA libraries count too. An assumption."""


def peak_memory(
    workload: Workload, choice: Choice, hardware: Hardware = "cpu", *, unified: bool = False
) -> MemoryEstimate:
    """Returns the worker's predicted peak: while it trains, or while it loads where that takes more.

    Args:
        workload: what the round asks.
        choice: the plan.
        hardware: where the worker computes; on CUDA its context takes the place of the libraries' resident set.
        unified: the GPU shares the host's memory, so that the libraries count as well.
    """
    fitted = FITTED[hardware]
    parts = {
        "framework": _UNIFIED_LIBRARIES_BYTES if unified else fitted.libraries_bytes,
        **parts_of(workload, choice, hardware),
        "allocator slack": round(
            sum(size * getattr(fitted, name) for name, size in slack_bases(workload, choice).items())
        ),
    }
    excess = _loading_bytes(workload, choice, hardware) - sum(parts.values())
    return MemoryEstimate(
        {name: size for name, size in parts.items() if size} | ({"loading": excess} if excess > 0 else {})
    )


def parts_of(workload: Workload, choice: Choice, hardware: Hardware) -> dict[str, int]:
    """Returns the bytes that can be counted: weights, factors, and what the passes keep."""
    layout, targets = workload.layout, list(workload.target_modules)
    lora = layout.lora_parameters(targets, choice.rank) * _FP32
    held = layout.lora_parameters(targets, choice.held_rank) * _FP32 if choice.held_rank else 0
    shape = _Shape(workload, choice)
    return {
        "base weights": weight_bytes(layout, choice.quantization, hardware),
        "held adapter": held if workload.start == "frozen" else 0,
        "trained factors": lora,
        "gradients": lora * (1 + _single_gradients(workload, choice)),
        "optimizer state": 2 * lora,
        "activations": shape.kept_bytes(),
        "logits": shape.logits_bytes(),
    }


def _passed(workload: Workload, choice: Choice) -> int:
    """Returns the examples of a pass."""
    return choice.micro_batch_size or workload.batch_size


def _single_gradients(workload: Workload, choice: Choice) -> int:
    """Returns the examples whose gradients private training holds at once; recomputation takes one by one."""
    if not workload.private:
        return 0
    return 1 if choice.gradient_checkpointing else _passed(workload, choice)


def slack_bases(workload: Workload, choice: Choice) -> dict[str, int]:
    """Returns what the constants of `Fitted` that are shares are shares of."""
    shape = _Shape(workload, choice)
    recomputed, quantized = choice.gradient_checkpointing, choice.quantization in ("int8", "nf4")
    kept = 0 if recomputed else shape.kept_bytes()
    wide = quantized and any(name.startswith("w") for name in workload.target_modules)
    whole = sum(one.rows * one.columns * one.count for one in workload.layout.linears() if one.name != UNQUANTIZED)
    return {
        "kept_slack": kept,
        "wide_slack": kept if wide else 0,
        "recompute_slack": shape.backward_bytes() if recomputed else 0,
        "dequantize_slack": whole * _FP32 if quantized else 0,
    }


def _loading_bytes(workload: Workload, choice: Choice, hardware: Hardware) -> int:
    """Returns the peak while the base is loaded: the mapped checkpoint beside what becomes of it.

    fp32 weights are the mapped file itself. A GPU gets its weights one by one.
    """
    if hardware == "cuda" or choice.quantization == "fp32":
        return 0
    layout = workload.layout
    stored = layout.parameters * _FP32 if layout.stored_bytes is None else layout.stored_bytes
    made = weight_bytes(layout, choice.quantization, hardware)
    if choice.quantization == "bf16":
        return _LOADING_BYTES + stored + made
    return _LOADING_BYTES + _LOADING_QUANTIZED_BYTES + stored + round((1 + _LOADING_QUANTIZED_SHARE) * made)


def activation_bytes(workload: Workload, choice: Choice) -> int:
    """Returns the bytes that autograd would keep of a pass in fp32 without recomputing: its traffic goes with them."""
    return _Shape(workload, replace(choice, gradient_checkpointing=False, quantization="fp32")).kept_bytes()


def weight_bytes(layout: ModelLayout, quantization: Quantization, hardware: Hardware = "cpu") -> int:
    """Returns the bytes of the frozen base.

    Quantized are the linear layers of the blocks but `wo`; the rest stays in the precision that is computed in: fp32 on
    a CPU, bf16 on a GPU. int8 has a scale per row; its outlier columns are picked out of the activations and cost no
    memory while training. NF4 has a constant per 64 weights, itself kept in 8 bits with a constant per 256 of them
    (double quantization, arXiv 2305.14314).
    """
    plain = 2 if quantization == "bf16" or (hardware == "cuda" and quantization != "fp32") else _FP32
    if quantization in ("fp32", "bf16"):
        return layout.parameters * plain
    total = (layout.embedding_parameters + layout.other_parameters) * plain
    for one in layout.linears():
        weights = one.rows * one.columns
        if one.name == UNQUANTIZED:
            total += one.count * weights * _FP32
        elif quantization == "int8":
            total += one.count * (weights + _FP32 * one.rows)
        else:
            blocks = -(-weights // _NF4_BLOCK)
            total += one.count * (weights // 2 + blocks + _FP32 * -(-blocks // _NF4_NESTED_BLOCK))
    return total


class _Shape:
    """The tensors of one forward and backward pass, by their sizes."""

    def __init__(self, workload: Workload, choice: Choice) -> None:
        self._layout = workload.layout
        self._targets: Collection[str] = workload.target_modules
        self._choice = choice
        self._batch = _passed(workload, choice)
        self._source = workload.source_tokens
        self._target = workload.target_tokens
        self._half = choice.quantization == "bf16"
        self._frozen = workload.start == "frozen" and choice.held_rank > 0

    def kept_bytes(self) -> int:
        """What autograd keeps from the forward pass for the backward pass."""
        layout = self._layout
        encoder, decoder = self._block("encoder"), self._block("decoder")
        if not self._choice.gradient_checkpointing:
            whole = layout.encoder_layers * encoder + layout.decoder_layers * decoder
        else:  # the inputs of all blocks, and everything of the one that is worked on
            element = 2 if self._half else _FP32
            inputs = layout.encoder_layers * self._source + layout.decoder_layers * self._target
            whole = inputs * self._batch * layout.d_model * element + max(encoder, decoder)
        return whole + self._biases()

    def _block(self, part: Literal["encoder", "decoder"]) -> int:
        """Bytes kept for one block."""
        layout, batch = self._layout, self._batch
        source, target = batch * self._source, batch * self._target
        dropout = layout.dropout
        sublayer = layout.d_model * (8 if dropout else 4)  # the norm's input, and dropout's noise
        wide = layout.d_ff * self._feed_forward_copies()
        per_score = layout.heads * (12 if dropout else 0)
        if part == "encoder":
            total = source * (2 * sublayer + 3 * layout.inner * _FP32 + wide) + source * self._source * per_score
        else:
            total = target * (3 * sublayer + 4 * layout.inner * _FP32 + wide)
            total += source * 2 * layout.inner * _FP32  # keys and values of the cross attention
            total += target * (self._target + self._source) * per_score
        return total + self._adapted(part)

    def _feed_forward_copies(self) -> int:
        """Bytes per element of the wide activations: GELU's steps, the gate's two factors, dropout's noise."""
        copies = 28 if self._layout.gated else 20
        if not self._layout.dropout:
            copies -= 4
        return copies // 2 if self._half else copies

    def _adapted(self, part: Literal["encoder", "decoder"]) -> int:
        """The inputs of the trained factors: A needs its layer's input, B what A gives.

        In bf16 every layer gets an fp32 copy of its own; in fp32 layers that read the same tensor share it.
        """
        total, shared = 0, set()
        for one in self._layout.linears():
            if one.name not in self._targets or (one.part == "encoder") != (part == "encoder"):
                continue
            reads_source = part == "encoder" or (one.part == "cross" and one.name in ("k", "v"))
            tokens = self._batch * (self._source if reads_source else self._target)
            ranks = self._choice.rank + (self._choice.held_rank if self._frozen else 0)
            total += tokens * ranks * _FP32
            source = _input_of(one)
            if self._half or source not in shared:
                shared.add(source)
                total += tokens * one.columns * _FP32
        return total

    def _biases(self) -> int:
        """The relative position bias with the mask, one per stack and for the cross attention, kept once."""
        heads, batch = self._layout.heads, self._batch
        scores = self._source * self._source + self._target * self._target
        return batch * heads * scores * _FP32

    def logits_bytes(self) -> int:
        """Logits, their log-softmax, and the gradient, in fp32."""
        element = 10 if self._half else 12
        return self._batch * self._target * self._layout.vocabulary * element

    def backward_bytes(self) -> int:
        """What is alive beside the kept tensors in the worst moment of the backward pass."""
        layout, tokens = self._layout, self._batch * max(self._source, self._target)
        scores = layout.heads * self._source * (8 if layout.dropout else 0)
        wide = (layout.d_ff * 3 + layout.d_model) * (2 if self._half else _FP32)
        return tokens * max(scores, wide)


def _input_of(one: Linear) -> str:
    """A name for the tensor that a layer reads."""
    if one.name in ("q", "k", "v"):
        return f"{one.part} {'encoded' if one.part == 'cross' and one.name != 'q' else 'normed'}"
    return f"{one.part} {'normed for wide' if one.name.startswith('wi') else one.name}"
