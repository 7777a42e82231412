"""DP-SGD of the LoRA factors: what one example may change of a step is bounded, and noise hides it.

Abadi et al., "Deep Learning with Differential Privacy" (arXiv 1607.00133), on the factors alone as in DP-LoRA
(arXiv 2312.17493). A step takes every example with the same probability (Poisson sampling), scales the gradient of each
one's mean loss down to the clip norm C, adds them up, adds N(0, (σC)²) to every entry of the sum, and divides by the
number of examples that a step takes on average. What the optimizer makes of that needs no further protection.

Sampling and noise come from the operating system's generator. The federation's seed is known to everybody, and torch
seeds its generator on a CPU with 32 bits: noise from either could be drawn again by whoever tries, and subtracted. So a
private training is never repeated to the same bits, and a suspended one has no such state to keep.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from edgefed.training.adapters import AdaptedModel
from edgefed.training.options import ExamplePrivacy, TrainOptions, sample_rate
from edgefed.training.summarization import Batch, example_losses

__all__ = ["PrivateGradients", "poisson_batches", "private_gradients", "secret_normal"]

_BITS = 53
"""Of a uniform number: what a double holds."""


class PrivateGradients:
    """Gathers one step's gradient, pass by pass.

    Args:
        parameters: what is trained; their gradients exist.
        privacy: clip norm and noise.
        expected_examples: that a step takes on average.
        one_by_one: no hooks are installed, and every pass has a single example, whose gradient is then its own.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        privacy: ExamplePrivacy,
        expected_examples: float,
        *,
        one_by_one: bool,
    ) -> None:
        self._parameters = parameters
        self._privacy = privacy
        self._expected_examples = expected_examples
        self.one_by_one = one_by_one
        self._sums = [torch.zeros_like(parameter) for parameter in parameters]

    def forward(
        self, model: AdaptedModel, batch: Batch, *, label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns each example's loss summed over its target tokens, with a gradient, and how many tokens those are."""
        losses = example_losses(model.model, batch, label_smoothing=label_smoothing)
        return losses, torch.tensor([target for _, target in batch.lengths], device=losses.device)

    def backward(self, losses: torch.Tensor) -> None:
        """Adds the clipped gradients of the examples' losses, (examples,), to the step's sum."""
        torch.autograd.backward(losses.sum())
        self._add_clipped([self._own(parameter) for parameter in self._parameters])

    def finish(self) -> None:
        """Puts the noisy mean gradient of the step where the optimizer looks for it, and begins anew."""
        deviation = self._privacy.noise_multiplier * self._privacy.clip_norm
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            noisy = total.double() + deviation * secret_normal(total.shape).to(total.device)
            assert parameter.grad is not None
            parameter.grad.copy_(noisy / self._expected_examples)
            total.zero_()

    def _own(self, parameter: torch.Tensor) -> torch.Tensor:
        """Takes a parameter's gradients of the last pass: (examples, *shape)."""
        assert parameter.grad is not None
        if self.one_by_one:
            gradients = parameter.grad.clone().unsqueeze(0)
        else:
            gradients = parameter.grad_sample  # type: ignore[attr-defined] # opacus puts it there
            parameter.grad_sample = None  # type: ignore[attr-defined]
        parameter.grad.zero_()
        return gradients

    def _add_clipped(self, gradients: Sequence[torch.Tensor]) -> None:
        # An example whose gradient is not finite counts for nothing: it must not undo the bound, nor stop the training.
        norms = torch.stack([one.flatten(1).double().square().sum(1) for one in gradients]).sum(0).sqrt()
        factors = torch.where(norms.isfinite(), (self._privacy.clip_norm / norms).clamp(max=1.0), 0.0)
        for total, one in zip(self._sums, gradients, strict=True):
            usable = torch.where(norms.isfinite().view(-1, *[1] * (one.ndim - 1)), one, 0.0)
            total += torch.einsum("i,i...->...", factors.to(one.dtype), usable)


@contextmanager
def private_gradients(model: AdaptedModel, options: TrainOptions, examples: int) -> Iterator[PrivateGradients]:
    """Lends what gathers private gradients of a model, whose trained layers carry opacus' hooks meanwhile.

    Recomputed activations would pass those hooks twice, so with gradient checkpointing every pass has one example and
    needs none: as slow as that is, it is right for every kind of layer.

    Args:
        model: in training mode, its gradients made.
        options: with privacy.
        examples: on this device.
    """
    assert options.privacy is not None
    one_by_one = options.gradient_checkpointing
    expected = sample_rate(options.batch_size, examples) * examples
    gradients = PrivateGradients(model.parameters(), options.privacy, expected, one_by_one=one_by_one)
    if one_by_one:
        yield gradients
        return
    from opacus.grad_sample import GradSampleHooks  # late: opacus takes a second to import

    with warnings.catch_warnings():
        # The network's inputs are numbers of tokens, which have no gradient: torch says so for every such layer.
        warnings.filterwarnings("ignore", message=".*backward hook.*", category=UserWarning)
        hooks = GradSampleHooks(model.model, batch_first=True, loss_reduction="sum")
        try:
            yield gradients
        finally:
            hooks.cleanup()


def poisson_batches(examples: int, rate: float) -> Iterator[list[int]]:
    """Yields row numbers for ever: every row with probability `rate`, each time anew; a batch may well be empty."""
    while True:
        yield np.flatnonzero(_secret_uniform(examples) <= rate).tolist()


def secret_normal(shape: Sequence[int]) -> torch.Tensor:
    """Returns standard normal numbers in float64 that nobody can foretell, by Box and Muller's transform."""
    count = int(np.prod(shape, dtype=np.int64))
    pairs = -(-count // 2)
    radius = np.sqrt(-2.0 * np.log(_secret_uniform(pairs)))
    angle = 2.0 * np.pi * _secret_uniform(pairs)
    drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy(drawn).reshape(tuple(shape))


def _secret_uniform(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Returns numbers in (0, 1], equally spaced, from the operating system."""
    whole = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(64 - _BITS)
    uniform: np.ndarray[tuple[int], np.dtype[np.float64]] = (whole.astype(np.float64) + 1.0) * 2.0**-_BITS
    return uniform
