"""The training loop of one device in one round: steps, each with its phases timed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch

from edgefed.data.examples import Example
from edgefed.errors import DataError, Diverged, WorkerOutOfMemory
from edgefed.models.flops import ExampleFlops
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.adapters import AdaptedModel
from edgefed.training.options import TrainOptions, sample_rate
from edgefed.training.privacy import PrivateGradients, poisson_batches, private_gradients
from edgefed.training.round_work import Suspend
from edgefed.training.steps import StepRecord, TrainResult, summed
from edgefed.training.summarization import Batch, collate, summed_loss
from edgefed.training.suspension import Suspended, Suspension
from edgefed.training.timers import PhaseTimer
from edgefed.training.worker_memory import give_back

__all__ = ["train"]


def train(
    model: AdaptedModel,
    examples: Sequence[Example],
    task: SummarizationTask,
    options: TrainOptions,
    on_step: Callable[[StepRecord], None] = lambda _: None,
    *,
    resume: Suspension | None = None,
) -> TrainResult:
    """Train the factors of `model` in place; with the same seed on the same machine, to the same bits.

    A private training (`TrainOptions.privacy`) draws its examples and its noise in secret instead, see
    `edgefed.training.privacy`. The losses and token counts of its steps are those of real examples: they are for this
    device's eyes only.

    Args:
        model: with LoRA installed; its "train" factors change, nothing else does.
        examples: this device's data. Each is used once before any is used twice, in an order drawn anew every time.
        task: how examples become tokens.
        options: steps, batch sizes, optimizer.
        on_step: called after every step; it may raise `Suspend` to stop there.
        resume: a training with these same arguments that was suspended; it goes on to the same bits.

    Raises:
        DataError: there are no examples.
        Suspended: `on_step` asked for it, before the last step.
        Diverged: the loss or the gradient is no longer finite.
        WorkerOutOfMemory: the device's memory does not hold a step.
    """
    if not examples:
        raise DataError("there are no examples to train on")
    optimizer = _optimizer(model.parameters(), options)
    batches = _batches_of(options, len(examples))
    flops = model.flops()
    _make_gradients(model.parameters())
    records: list[StepRecord] = []
    private = private_gradients(model, options, len(examples)) if options.privacy else nullcontext()
    with _training_mode(model, options), _out_of_memory_in_words(options), private as gradients:
        if resume is not None:
            resume.restore(model.parameters(), optimizer)
            records += resume.steps
            for _ in records:
                next(batches)
        for step in range(len(records), options.steps):
            optimizer.param_groups[0]["lr"] = options.learning_rate_at(step)
            record = _step(
                model, [examples[i] for i in next(batches)], task, options, optimizer, step, flops, gradients
            )
            records.append(record)
            try:
                on_step(record)
            except Suspend:
                if len(records) < options.steps:
                    raise Suspended(Suspension.of(model.parameters(), optimizer, records)) from None
    return summed(records, options.batch_size)


def _step(
    model: AdaptedModel,
    examples: Sequence[Example],
    task: SummarizationTask,
    options: TrainOptions,
    optimizer: torch.optim.Optimizer,
    step: int,
    flops: ExampleFlops,
    private: PrivateGradients | None = None,
) -> StepRecord:
    timer = PhaseTimer(model.device)
    size = _pass_size(options, private)
    micro = [
        collate(model.tokenizer, task, examples[i : i + size], model.device) for i in range(0, len(examples), size)
    ]
    target_tokens = sum(batch.target_tokens for batch in micro)
    timer.mark("data")
    if private is None:
        loss = _accumulate(model, micro, target_tokens, options, timer)
    else:
        loss = _accumulate_private(model, micro, target_tokens, options, timer, private)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm or math.inf)
    _check_finite(float(loss), float(norm), step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    timer.mark("optimizer")
    seconds = timer.seconds()
    return StepRecord(
        step=step,
        loss=float(loss),
        source_tokens=sum(batch.source_tokens for batch in micro),
        target_tokens=target_tokens,
        model_flops=sum(flops(batch.lengths) for batch in micro),
        gradient_norm=float(norm),
        data_s=seconds["data"],
        forward_s=seconds.get("forward", 0.0),  # a private step may have taken no example
        backward_s=seconds.get("backward", 0.0),
        optimizer_s=seconds["optimizer"],
    )


def _accumulate(
    model: AdaptedModel, micro: Sequence[Batch], target_tokens: int, options: TrainOptions, timer: PhaseTimer
) -> torch.Tensor:
    """Add up gradients of the mean loss over the whole step's tokens; return that mean."""
    total = torch.zeros((), device=model.device)
    for batch in micro:
        loss = summed_loss(model.model, batch, label_smoothing=options.label_smoothing) / target_tokens
        timer.mark("forward")
        torch.autograd.backward(loss)
        total += loss.detach()
        if len(micro) > 1 and model.device.type == "cpu":  # the next pass must not build around the holes of this one
            give_back()
        timer.mark("backward")
    return total


def _accumulate_private(
    model: AdaptedModel,
    micro: Sequence[Batch],
    target_tokens: int,
    options: TrainOptions,
    timer: PhaseTimer,
    private: PrivateGradients,
) -> torch.Tensor:
    """Make the step's noisy gradient; return the mean loss over its tokens, 0 where it happened to take no example."""
    total = torch.zeros((), device=model.device)
    for batch in micro:
        losses, tokens = private.forward(model, batch, label_smoothing=options.label_smoothing)
        timer.mark("forward")
        private.backward(losses / tokens)
        total += losses.detach().sum().nan_to_num(posinf=0.0)
        timer.mark("backward")
    private.finish()
    return total / max(target_tokens, 1)


def _make_gradients(parameters: Sequence[torch.Tensor]) -> None:
    """Makes the gradients before the first pass.

    Made by the backward pass, they would lie scattered among its activations and keep the allocator from using that
    space as a whole again: of a FLAN-T5-small with every layer adapted the peak grew by 8 %.
    """
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)


def _check_finite(loss: float, norm: float, step: int) -> None:
    if not math.isfinite(loss):
        what = f"the loss is {loss}"
    elif not math.isfinite(norm):
        what = f"the loss is {loss:.3g} and the norm of its gradient {norm}"
    else:
        return
    raise Diverged(f"training diverged: {what} at step {step}; lower the learning rate, or lengthen the warm-up")


def _optimizer(parameters: list[torch.Tensor], options: TrainOptions) -> torch.optim.Optimizer:
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    return torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)


def _pass_size(options: TrainOptions, private: PrivateGradients | None) -> int:
    """Examples per forward pass; a private step that took many does not take more memory than planned."""
    if private is not None and private.one_by_one:
        return 1
    return options.micro_batch_size or options.batch_size


def _batches_of(options: TrainOptions, count: int) -> Iterator[list[int]]:
    if options.privacy is not None:
        return poisson_batches(count, sample_rate(options.batch_size, count))
    return _batches(count, options.batch_size, options.seed)


def _batches(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield row numbers for ever, all rows once before any comes again."""
    rng = random.Random(f"batches/{seed}")
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += rng.sample(range(count), count)
        yield waiting[:batch_size]
        del waiting[:batch_size]


@contextmanager
def _training_mode(model: AdaptedModel, options: TrainOptions) -> Iterator[None]:
    """Dropout on, its random numbers from the seed, and everything as before afterwards."""
    devices = [torch.cuda.current_device()] if model.device.type == "cuda" else []
    network = model.model
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(options.seed)
        network.train()
        if options.gradient_checkpointing:
            _call_renamed(network, "checkpointing_enable", {"use_reentrant": False})
            # transformers also has the embeddings' output ask for gradients, for ever: non-reentrant checkpointing
            # needs none, and each later step would go on computing them.
            with suppress(AttributeError):  # of versions that did not
                network.disable_input_require_grads()
        try:
            yield
        finally:
            if options.gradient_checkpointing:
                _call_renamed(network, "checkpointing_disable")
            network.eval()
            for parameter in model.parameters():
                parameter.grad = None


def _call_renamed(network: Any, method: str, *arguments: object) -> None:
    """Call a method that transformers 5.23 renamed from gradient_… to activation_…."""
    newer = f"activation_{method}"
    getattr(network, newer if hasattr(network, newer) else f"gradient_{method}")(*arguments)


@contextmanager
def _out_of_memory_in_words(options: TrainOptions) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told_by_allocator = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in str(
            error
        )
        if not told_by_allocator:
            raise
        size = options.micro_batch_size or options.batch_size
        raise WorkerOutOfMemory(
            f"memory ran out in a training step with {size} examples per forward pass; lower micro_batch_size, turn on "
            "gradient_checkpointing, or train a smaller rank"
        ) from error
