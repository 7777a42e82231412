"""What the commands that run a model share: which model, which task, which adapter, and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgefed.errors import AdapterError, ConfigError
from edgefed.protocol.tasks import SummarizationTask

if TYPE_CHECKING:
    from edgefed.training.base_model import LoadedModel

__all__ = ["adapter_directory", "load_model", "progress", "task_of"]


def task_of(config: Path | None, model: str, **fields: str) -> tuple[str, SummarizationTask, Mapping[str, str]]:
    """Returns the base model's name, the task, and directories by model name.

    Args:
        config: a federation.toml, or None.
        model: the base model; wins over the file's.
        **fields: `source_field`, `target_field` and `prompt`, for where there is no file.

    Raises:
        ConfigError: neither says which model; or the file is wrong.
    """
    if config is not None:
        from edgefed.config import read_federation

        options = read_federation(config)
        return model or options.model.name, options.task, options.models
    if not model:
        raise ConfigError("which base model? Name it with --model, or give a federation.toml with --config")
    try:
        task = SummarizationTask(
            source=fields.get("source_field", "dialogue"),
            target=fields.get("target_field", "summary"),
            prompt=fields.get("prompt", "summarize: {source}"),
        )
    except ValueError as error:
        raise ConfigError(f"--prompt: {error}") from None
    return model, task, {}


def adapter_directory(path: Path) -> Path:
    """Returns the PEFT adapter in a directory that is one, or in a run's directory (the best, else the last).

    Raises:
        AdapterError: there is none.
    """
    for candidate in (path, path / "adapter-best", path / "adapter"):
        if (candidate / "adapter_config.json").is_file():
            return candidate
    raise AdapterError(f"{path} holds no PEFT adapter (adapter_config.json), nor is it the directory of a finished run")


def load_model(name: str, overrides: Mapping[str, str], threads: int = 0) -> LoadedModel:
    """Returns the base model in fp32, loaded.

    Raises:
        ModelError: it is not to be had.
    """
    from edgefed.models.checkpoint import resolve_model
    from edgefed.training.base_model import load_base

    return load_base(resolve_model(name, overrides), "fp32", threads=threads or None)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, int], None] | None]:
    """Lends a callback (done, total) that moves a bar on the terminal; None where there is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, _total: bar.update(task, completed=done)
