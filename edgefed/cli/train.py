"""`edgefed train`: one adapter on this machine, with a federation's settings: what the federation is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefed.cli.inference import Quantization

if TYPE_CHECKING:
    from edgefed.training.steps import StepRecord, TrainResult

__all__ = ["train"]


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="The federation.toml whose settings are used.")],
    data: Annotated[
        list[Path], typer.Option("--data", "-d", help="Examples: JSONL, CSV, or a directory of them; repeatable.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PEFT adapter directory to write.")],
    rank: Annotated[int, typer.Option(help="Of the adapter; 0 takes the largest of method.ranks.", min=0)] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps; 0 takes rounds × local_steps.", min=0)] = 0,
    seed: Annotated[int | None, typer.Option(help="Of factors, data order, dropout; else the file's.")] = None,
    quantization: Annotated[Quantization, typer.Option(help="How the base is kept.")] = Quantization.FP32,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
) -> None:
    """Train one LoRA adapter here, without a federation.

    Model, task, method and training options are the federation's, and the factors start as a device's of that rank do.
    With one device's data it is what that device reaches alone; with everybody's, what a federation can hope for.

    Examples:
      edgefed train -c federation.toml -d data/device-03.jsonl --rank 4 -o alone-03
      edgefed train -c federation.toml -d data --steps 500 --quantization nf4 -o centralized --json
    """
    import time

    from edgefed.cli.inference import Work, check_output, progress
    from edgefed.cli.output import told_where, write_json, write_table
    from edgefed.config import read_federation
    from edgefed.data.examples import read_examples

    options = read_federation(config)
    task, method = options.task, options.method
    place = check_output(output, force=force)
    examples = [
        example for path in data for example in read_examples(path, source_field=task.source, target_field=task.target)
    ]
    work = Work(options.model.name, options.models, task)
    started_s = time.monotonic()
    base = work.load(quantization, threads)
    load_s = time.monotonic() - started_s

    from edgefed.lora.peft_files import write_peft
    from edgefed.stopping import heeded_interrupts
    from edgefed.training.standalone import train_alone

    rank = rank or max(method.ranks)
    steps = steps or options.rounds * options.training.local_steps
    with progress("training") as move, heeded_interrupts() as heed:

        def on_step(step: StepRecord) -> None:
            heed()
            move(step.step + 1, steps, f"loss {step.loss:.3f}")

        model, result = train_alone(
            base,
            work.path(),
            examples,
            task=task,
            method=method,
            training=options.training,
            rank=rank,
            steps=steps,
            seed=options.seed if seed is None else seed,
            on_step=on_step,
        )
    with told_where(place):
        write_peft(place, model.get_factors(), base_model=work.model, target_modules=method.target_modules)
    about = {"adapter": str(output), "base_model": work.model, "quantization": quantization.value, "rank": rank}
    figures = {**about, "examples": len(examples), "load_s": load_s, **_figures(result)}
    if json:
        write_json(figures)
        return
    write_table(
        ("figure", "value"),
        [(key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in figures.items()],
    )


def _figures(result: TrainResult) -> dict[str, int | float]:
    """Returns the sums of a training, in their own names, and tokens (read and written) per second of all phases."""
    from dataclasses import asdict

    sums = {key: value for key, value in asdict(result).items() if key != "examples"}
    train_s = result.data_s + result.forward_s + result.backward_s + result.optimizer_s
    tokens_per_s = (result.source_tokens + result.target_tokens) / train_s
    return {**sums, "examples_seen": result.examples, "train_s": train_s, "tokens_per_s": tokens_per_s}
