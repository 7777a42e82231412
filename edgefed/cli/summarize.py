"""`edgefed summarize`: summaries of texts, with an adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["summarize"]

_Text = tuple[str, str]
"""Where a text is from, and the text."""


def summarize(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text files, one text each; none, or -, reads standard input.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", "-a", help="A PEFT adapter or a run's directory; none: the base model.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A federation.toml that names model, field and prompt.")
    ] = None,
    model: Annotated[str, typer.Option(help="The base model; else the file's, else the one the adapter names.")] = "",
    prompt: Annotated[
        str | None, typer.Option(help="What the model reads; wins over the file.  [default: summarize: {source}]")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Every line is a text of its own.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Every line is a JSON object with a text.")] = False,
    source_field: Annotated[
        str | None, typer.Option(help="The text's field with --jsonl; wins over the file.  [default: dialogue]")
    ] = None,
    beams: Annotated[int, typer.Option(help="Beams of the search; 1 is greedy.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Write a line of JSON per text.")] = False,
) -> None:
    """Summarize texts: one line per text, in their order; blank lines are no texts.

    The prompt must be the one that the adapter was trained with.

    Examples:
      edgefed summarize --adapter edgefed-demo/run < dialogue.txt
      edgefed summarize --adapter adapter-8 --lines texts.txt > summaries.txt
      edgefed summarize --adapter adapter-8 --jsonl --source-field dialogue held-out.jsonl --json
    """
    from edgefed.cli.inference import progress, read_adapter, work_of

    if lines and jsonl:
        raise typer.BadParameter("--lines and --jsonl say different things about the same lines")
    if source_field is not None and not jsonl:
        raise typer.BadParameter("--source-field names a field of JSON lines; it needs --jsonl")
    read = None if adapter is None else read_adapter(adapter)
    named = read.base_model if read is not None and config is None else ""
    work = work_of(config, model or named, source_field=source_field, prompt=prompt)
    texts = _texts(files or [Path("-")], lines=lines, field=work.task.source if jsonl else None)
    if read is not None:
        read.check_fits(work)
    base = work.load(threads=threads)

    from edgefed.training.evaluate import summarise, with_adapter

    with with_adapter(base, None if read is None else read.factors) as loaded, progress("summarizing") as move:
        written = summarise(loaded, [text for _, text in texts], work.task, beams=beams, on_progress=move)
    for (origin, _), summary in zip(texts, written, strict=True):
        line = " ".join(summary.split())
        typer.echo(_as_json(origin, line) if json else line)


def _texts(files: list[Path], *, lines: bool, field: str | None) -> list[_Text]:
    """Returns everything that is to be summarized, stripped, without what is blank.

    Raises:
        DataError: a file cannot be read, holds no text, or has no such field.
    """
    from edgefed.data.examples import texts_of_json_lines
    from edgefed.errors import DataError

    found: list[_Text] = []
    for path in files:
        content = _content(path)
        name = "standard input" if str(path) == "-" else str(path)
        before = len(found)
        if field is not None:
            found += texts_of_json_lines(Path(name), content, field=field)
        elif lines:
            found += [(f"{name}:{number}", text) for number, text in enumerate(content.split("\n"), 1)]
        else:
            found.append((name, content))
        if not any(text.strip() for _, text in found[before:]):
            raise DataError(f"there is nothing to summarize: {name} is empty")
    return [(origin, text.strip()) for origin, text in found if text.strip()]


def _content(path: Path) -> str:
    from edgefed.errors import DataError

    if str(path) == "-" and sys.stdin.isatty():
        typer.echo("reading the text from the terminal; Ctrl-D ends it", err=True)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}") from error


def _as_json(origin: str, summary: str) -> str:
    import json

    return json.dumps({"source": origin, "summary": summary}, ensure_ascii=False)
