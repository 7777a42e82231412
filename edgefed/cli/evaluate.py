"""`edgefed evaluate`: how well the base model and adapters summarize the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgefed.cli.inference import Quantization

__all__ = ["evaluate"]

_SCORES = ("rouge1", "rouge2", "rouge_l")


def evaluate(
    data: Annotated[Path, typer.Option("--data", "-d", help="Examples: JSONL, CSV, or a directory of them.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A federation.toml that names model, fields and prompt.")
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option("--adapter", "-a", help="A PEFT adapter, or a run (its adapter-best, else adapter); repeatable."),
    ] = None,
    model: Annotated[str, typer.Option(help="The base model; wins over the file.")] = "",
    source_field: Annotated[
        str | None, typer.Option(help="The text's field; wins over the file.  [default: dialogue]")
    ] = None,
    target_field: Annotated[
        str | None, typer.Option(help="The summary's field; wins over the file.  [default: summary]")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the model reads; wins over the file.  [default: summarize: {source}]")
    ] = None,
    quantization: Annotated[Quantization, typer.Option(help="How the base is kept.")] = Quantization.FP32,
    max_examples: Annotated[int, typer.Option(help="Take the first so many; 0 takes all.", min=0)] = 0,
    rouge: Annotated[bool, typer.Option("--rouge/--no-rouge", help="Write summaries and score them.")] = True,
    beams: Annotated[int, typer.Option(help="Beams of the search; 1 is greedy.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
) -> None:
    """Score the base model and adapters on the same examples.

    loss is in nats per target token; ROUGE-1, -2 and -L are mean F1 with stemming.

    Examples:
      edgefed evaluate -c federation.toml -d held-out.jsonl -a edgefed-run
      edgefed evaluate --model edgefed/tiny-t5 -d held-out.jsonl -a adapter-4 -a adapter-16 --json
    """
    from edgefed.cli.inference import progress, read_adapter, work_of
    from edgefed.cli.output import write_json, write_table
    from edgefed.data.examples import read_examples

    if beams > 1 and not rouge:
        raise typer.BadParameter("--beams has no effect with --no-rouge, which writes no summaries")
    work = work_of(config, model, source_field=source_field, target_field=target_field, prompt=prompt)
    examples = read_examples(data, source_field=work.task.source, target_field=work.task.target)
    examples = examples[: max_examples or None]
    adapters = [read_adapter(path) for path in adapter or []]
    for adapted in adapters:
        adapted.check_fits(work)
    base = work.load(quantization, threads)

    from edgefed.training.evaluate import evaluate as score
    from edgefed.training.evaluate import with_adapter

    results: list[dict[str, Any]] = []
    for one in (None, *adapters):
        label = "base model" if one is None else str(one.directory)
        with with_adapter(base, one.factors if one else None) as loaded, progress(label) as move:
            found = score(loaded, examples, work.task, with_rouge=rouge, beams=beams, on_progress=move)
        scores = {} if found.rouge is None else {key: getattr(found.rouge, key) for key in _SCORES}
        results.append({"model": label, "examples": found.examples, "loss": found.loss, **scores})
    if json:
        about = {"base_model": work.model, "quantization": quantization.value, "data": str(data)}
        write_json({**about, "results": results})
        return
    keys = [key for key in ("loss", *_SCORES) if key in results[0]]
    write_table(("model", *keys), [(row["model"], *(f"{row[key]:.4f}" for key in keys)) for row in results])
