"""`edgefed evaluate`: how well the base model and adapters summarize the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["evaluate"]


def evaluate(
    data: Annotated[Path, typer.Option("--data", "-d", help="Examples: JSONL, CSV, or a directory of them.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A federation.toml that names model, fields and prompt.")
    ] = None,
    model: Annotated[str, typer.Option(help="The base model, where no file names it.")] = "",
    source_field: Annotated[str, typer.Option(help="The text's field, where no file names it.")] = "dialogue",
    target_field: Annotated[str, typer.Option(help="The summary's field, where no file names it.")] = "summary",
    adapter: Annotated[
        list[Path] | None, typer.Option("--adapter", "-a", help="A PEFT adapter or a run's directory; repeatable.")
    ] = None,
    max_examples: Annotated[int, typer.Option(help="At most so many examples; 0 takes all.", min=0)] = 0,
    beams: Annotated[int, typer.Option(help="Beams of the search; 1 is greedy.", min=1)] = 1,
    rouge: Annotated[bool, typer.Option("--rouge/--no-rouge", help="Write summaries and score them.")] = True,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
) -> None:
    """Score the base model and adapters on examples: loss (nats per target token) and ROUGE-1, -2 and -L (F1).

    Examples:
      edgefed evaluate -c federation.toml -d held-out.jsonl -a edgefed-run
      edgefed evaluate --model edgefed/tiny-t5 -d held-out.jsonl --no-rouge --json
    """
    from edgefed.cli.inference import adapter_directory, load_model, progress, task_of
    from edgefed.cli.output import write_json, write_table
    from edgefed.data.examples import read_examples

    name, task, overrides = task_of(config, model, source_field=source_field, target_field=target_field)
    examples = read_examples(data, source_field=task.source, target_field=task.target)
    examples = examples[: max_examples or None]
    directories = [adapter_directory(path) for path in adapter or []]
    base = load_model(name, overrides, threads)

    from edgefed.training.evaluate import evaluate as score
    from edgefed.training.evaluate import with_adapter

    results: list[dict[str, Any]] = []
    for directory in (None, *directories):
        label = "base model" if directory is None else str(directory)
        with with_adapter(base, directory) as loaded, progress(label, len(examples)) as on_progress:
            found = score(loaded, examples, task, with_rouge=rouge, beams=beams, on_progress=on_progress)
        scores = {} if found.rouge is None else {k: getattr(found.rouge, k) for k in ("rouge1", "rouge2", "rouge_l")}
        results.append({"model": label, "examples": found.examples, "loss": found.loss, **scores})
    if json:
        write_json({"base_model": name, "data": str(data), "results": results})
        return
    keys = [key for key in ("loss", "rouge1", "rouge2", "rouge_l") if key in results[0]]
    write_table(("model", *keys), [(row["model"], *(f"{row[key]:.3f}" for key in keys)) for row in results])
