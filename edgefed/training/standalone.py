"""Training without a federation, with a federation's own settings: the baselines that its result is compared with.

Local-only: one device's examples. Centralized: everybody's examples in one place, which a federation cannot have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgefed.data.examples import Example
from edgefed.errors import ConfigError
from edgefed.lora.adapters import initial_adapter, truncated
from edgefed.models.checkpoint import linear_shapes
from edgefed.protocol.tasks import LoraMethod, SummarizationTask, Training
from edgefed.training.adapters import AdaptedModel, install
from edgefed.training.base_model import LoadedModel
from edgefed.training.loop import train
from edgefed.training.options import LoraOptions, TrainOptions
from edgefed.training.steps import StepRecord, TrainResult

__all__ = ["train_alone", "train_options"]


def train_alone(
    base: LoadedModel,
    model_path: Path,
    examples: Sequence[Example],
    *,
    task: SummarizationTask,
    method: LoraMethod,
    training: Training,
    rank: int,
    steps: int,
    seed: int,
    on_step: Callable[[StepRecord], None] = lambda _: None,
) -> tuple[AdaptedModel, TrainResult]:
    """Trains one fresh LoRA adapter as a device of this federation would, and returns the model with it and the sums.

    It starts where a device of this rank starts in round 1: B zero, and A the first rows of the federation's initial
    adapter where the method sends one, or fresh rows of the device's own. These differ in size (rows of norm 1 and
    about 0.58), and with it in how fast they learn.

    Args:
        base: the loaded base model; `AdaptedModel.remove` gives it back clean.
        model_path: its directory.
        examples: to train on.
        task: how an example becomes tokens.
        method: target modules, α, scaling and dropout.
        training: batch sizes and learning rate; its `local_steps` is not used.
        rank: of the factors.
        steps: optimizer steps.
        seed: of the factors, the data order and dropout.
        on_step: called after every step.

    Raises:
        ConfigError: no matrix of the model has so large a rank.
        DataError: there are no examples.
        ModelError: the model lacks the target modules.
        WorkerError: training diverged.
    """
    options = LoraOptions(rank=rank, alpha=method.alpha, dropout=method.dropout, scaling=method.rank_scaling)
    shapes = linear_shapes(model_path, method.target_modules)
    smallest = min(min(shape) for shape in shapes.values())
    if rank > smallest:
        raise ConfigError(f"rank {rank} is over {smallest}, the smaller side of the smallest matrix to change")
    model = install(base, list(shapes), options, seed=seed)
    if method.start == "truncated":
        model.set_factors("train", truncated(initial_adapter(shapes, max(rank, method.global_rank), seed), rank))
    result = train(model, examples, task, train_options(training, steps=steps, seed=seed), on_step)
    return model, result


def train_options(training: Training, *, steps: int, seed: int) -> TrainOptions:
    """Returns the loop's options for a federation's training settings."""
    return TrainOptions(
        steps=steps,
        batch_size=training.batch_size,
        micro_batch_size=training.micro_batch_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_steps,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        seed=seed,
    )
