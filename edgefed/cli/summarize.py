"""`edgefed summarize`: summaries of texts, with an adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["summarize"]


def summarize(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text files, one text each; none, or -, reads standard input.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", "-a", help="A PEFT adapter or a run's directory; none: the base model.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A federation.toml that names model and prompt.")
    ] = None,
    model: Annotated[str, typer.Option(help="The base model; else the one that the adapter names.")] = "",
    prompt: Annotated[str, typer.Option(help="What the model reads.")] = "summarize: {source}",
    lines: Annotated[bool, typer.Option("--lines", help="Every line is a text of its own.")] = False,
    beams: Annotated[int, typer.Option(help="Beams of the search; 1 is greedy.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Write a line of JSON per text.")] = False,
) -> None:
    """Summarize texts, one summary per line.

    Examples:
      edgefed summarize --adapter edgefed-demo/run < dialogue.txt
      edgefed summarize --adapter edgefed-run/adapter --lines texts.txt --json
    """
    from edgefed.cli.inference import adapter_directory, load_model, progress, task_of

    texts = _texts(files or [Path("-")], lines)
    directory = None if adapter is None else adapter_directory(adapter)
    if directory is not None and config is None and not model:
        from edgefed.lora.peft_files import read_peft

        model = read_peft(directory)[1]
    name, task, overrides = task_of(config, model, prompt=prompt)
    base = load_model(name, overrides, threads)

    from edgefed.training.evaluate import summarise, with_adapter

    with with_adapter(base, directory) as loaded, progress("summarizing", len(texts)) as on_progress:
        summaries = summarise(loaded, [text for _, text in texts], task, beams=beams, on_progress=on_progress)
    for (origin, _), summary in zip(texts, summaries, strict=True):
        typer.echo(_as_json(origin, summary) if json else summary)


def _texts(files: list[Path], lines: bool) -> list[tuple[str, str]]:
    """Returns (where from, text) of everything that is to be summarized.

    Raises:
        DataError: a file cannot be read, or there is nothing in all of them.
    """
    from edgefed.errors import DataError

    found: list[tuple[str, str]] = []
    for path in files:
        try:
            content = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as text: {error}") from error
        texts = content.splitlines() if lines else [content]
        found += [(f"{path}:{number}" if lines else str(path), text) for number, text in enumerate(texts, 1)]
    found = [(origin, text.strip()) for origin, text in found if text.strip()]
    if not found:
        raise DataError("there is nothing to summarize: the input is empty")
    return found


def _as_json(origin: str, summary: str) -> str:
    import json

    return json.dumps({"source": origin, "summary": summary}, ensure_ascii=False)
