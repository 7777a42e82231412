"""How many operations a training step takes, counted layer by layer as autograd goes through them.

A multiplication and an addition count as two. Only matrix products count, as in torch's FlopCounterMode, which this
agrees with (`benchmarks/flops`). With LoRA nothing is spent on the gradients of frozen weights, and none on the inputs
of layers below the first adapted one: where a gradient is needed is followed through the network, not assumed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from edgefed.models.layout import ModelLayout

__all__ = ["Adaptation", "ExampleFlops", "StepFlops", "step_flops"]


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What is trained: LoRA factors on some layers, with or without a frozen branch beside them, or everything.

    Attributes:
        target_modules: names of the adapted layers; not used when everything is trained.
        rank: of the trained factors; 0 trains all weights.
        held_rank: of the frozen branch.
    """

    target_modules: Collection[str] = ()
    rank: int = 0
    held_rank: int = 0


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Operations of one forward and backward pass.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass.
        recompute: what gradient checkpointing adds: the blocks' forward passes once more, and, because peft lets the
            gradient run into the embedding then, the products that this takes. Not useful work.
    """

    forward: float
    backward: float
    recompute: float

    @property
    def model(self) -> float:
        """What the model needs, however it is computed: forward and backward, without recomputation."""
        return self.forward + self.backward

    def __add__(self, other: StepFlops) -> StepFlops:
        return StepFlops(self.forward + other.forward, self.backward + other.backward, self.recompute + other.recompute)


def step_flops(layout: ModelLayout, adaptation: Adaptation, source: int, target: int, batch: int = 1) -> StepFlops:
    """Returns the operations of training on a batch.

    Args:
        layout: of the base model.
        adaptation: what is trained.
        source: tokens of every input, padding included.
        target: tokens of every target.
        batch: examples.
    """
    plain = _counted(layout, adaptation, source, target, batch, embedded=not adaptation.rank)
    entered = _counted(layout, adaptation, source, target, batch, embedded=True)
    return StepFlops(
        forward=plain.forward,
        backward=plain.backward,
        recompute=plain.in_blocks + entered.backward - plain.backward,
    )


class ExampleFlops:
    """Operations of training on examples one by one, as a polynomial in their lengths: quick enough for every step."""

    def __init__(self, layout: ModelLayout, adaptation: Adaptation) -> None:
        def of(source: int, target: int) -> float:
            return step_flops(layout, adaptation, source, target).model

        self._square = ((of(2, 0) - 2 * of(1, 0)) / 2, (of(0, 2) - 2 * of(0, 1)) / 2)
        self._linear = (of(1, 0) - self._square[0], of(0, 1) - self._square[1])
        self._mixed = of(1, 1) - of(1, 0) - of(0, 1)

    def __call__(self, lengths: Iterable[tuple[int, int]]) -> float:
        """Returns the forward and backward operations of examples with (source, target) real tokens.

        Padding is not counted: it is not useful work.
        """
        return sum(
            (self._linear[0] + self._square[0] * source) * source
            + (self._linear[1] + self._square[1] * target) * target
            + self._mixed * source * target
            for source, target in lengths
        )


def _counted(
    layout: ModelLayout, adaptation: Adaptation, source: int, target: int, batch: int, *, embedded: bool
) -> _Count:
    """Goes through the network once; `embedded` says whether the embedding's output needs a gradient."""
    count = _Count(layout, adaptation, batch)
    encoded = embedded
    for _ in range(layout.encoder_layers):
        encoded = count.attention(encoded, encoded, source, source)
        encoded = count.feed_forward(encoded, source)
    decoded = embedded
    for _ in range(layout.decoder_layers):
        decoded = count.attention(decoded, decoded, target, target)
        decoded = count.attention(decoded, encoded, target, source)
        decoded = count.feed_forward(decoded, target)
    count.in_blocks = count.forward
    count.product(batch * target, layout.d_model, layout.vocabulary, decoded, weight=not adaptation.rank)
    return count


class _Count:
    """Adds up products; each method returns whether its output needs a gradient."""

    def __init__(self, layout: ModelLayout, adaptation: Adaptation, batch: int) -> None:
        self._layout = layout
        self._adaptation = adaptation
        self._batch = batch
        self.forward = 0.0
        self.in_blocks = 0.0
        self.backward = 0.0

    def product(self, rows: int, inner: int, columns: int, left: bool, weight: bool) -> bool:
        """(rows, inner) times (inner, columns): one more product for every operand that needs a gradient."""
        once = 2.0 * rows * inner * columns
        self.forward += once
        self.backward += once * (left + weight)
        return left or weight

    def linear(self, name: str, tokens: int, inner: int, outer: int, x: bool) -> bool:
        """A linear layer of the base with what is beside it."""
        adaptation = self._adaptation
        out = self.product(tokens, inner, outer, x, weight=not adaptation.rank)
        if adaptation.rank and name in adaptation.target_modules:
            for rank, trained in ((adaptation.held_rank, False), (adaptation.rank, True)):
                if rank:
                    middle = self.product(tokens, inner, rank, x, weight=trained)
                    out |= self.product(tokens, rank, outer, middle, weight=trained)
        return out

    def attention(self, x: bool, memory: bool, queries: int, keys: int) -> bool:
        """Projections, scores, weighted sum, output, and the residual."""
        wide, inner, batch = self._layout.d_model, self._layout.inner, self._batch
        q = self.linear("q", batch * queries, wide, inner, x)
        k = self.linear("k", batch * keys, wide, inner, memory)
        v = self.linear("v", batch * keys, wide, inner, memory)
        scores = self.product(batch * queries, inner, keys, q, k)
        mixed = self.product(batch * queries, keys, inner, scores, v)
        return self.linear("o", batch * queries, inner, wide, mixed) or x

    def feed_forward(self, x: bool, length: int) -> bool:
        """One or two projections up, one down, and the residual."""
        wide, narrow, tokens = self._layout.d_ff, self._layout.d_model, self._batch * length
        if self._layout.gated:
            up = self.linear("wi_0", tokens, narrow, wide, x) | self.linear("wi_1", tokens, narrow, wide, x)
        else:
            up = self.linear("wi", tokens, narrow, wide, x)
        return self.linear("wo", tokens, wide, narrow, up) or x
