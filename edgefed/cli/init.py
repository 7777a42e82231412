"""`edgefed init`: commented example configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["init"]


def init(
    directory: Annotated[Path, typer.Argument(help="Where to write them.", file_okay=False)] = Path(),
    federation: Annotated[bool, typer.Option("--federation", help="Write federation.toml only.")] = False,
    agent: Annotated[bool, typer.Option("--agent", help="Write agent.toml only.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Write commented examples of federation.toml and agent.toml.

    Every key is in them, with its meaning, what is allowed and its default.

    Examples:
      edgefed init                   both, here
      edgefed init --agent board-07  board-07/agent.toml, for one device
    """
    from edgefed.cli.output import told_where
    from edgefed.config import example_agent, example_federation
    from edgefed.errors import ConfigError
    from edgefed.files import replace_file

    both = federation == agent
    texts = {}
    if federation or both:
        texts[directory / "federation.toml"] = example_federation()
    if agent or both:
        texts[directory / "agent.toml"] = example_agent()
    existing = [str(path) for path in texts if path.exists()]
    if existing and not force:
        raise ConfigError(f"{' and '.join(existing)} exist already; --force overwrites")
    with told_where(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            replace_file(path, [text.encode()])
    for path in texts:
        typer.echo(f"wrote {path}")
