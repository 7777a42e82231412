"""What the commands that run a model share: which model, which task, which adapters, and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from edgefed.errors import AdapterError, ConfigError, ModelError

if TYPE_CHECKING:
    from edgefed.lora.low_rank import LowRank
    from edgefed.protocol.tasks import SummarizationTask
    from edgefed.training.base_model import LoadedModel

__all__ = ["Progress", "Quantization", "ReadAdapter", "Work", "check_output", "progress", "read_adapter", "work_of"]


class Quantization(str, Enum):
    """How base weights are kept; see `edgefed.training.options`."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    NF4 = "nf4"


@dataclass(frozen=True, slots=True)
class Work:
    """A base model and what it is to do.

    Attributes:
        model: the base model's name.
        models: local directories by model name.
        task: fields, prompt, lengths.
    """

    model: str
    models: Mapping[str, str]
    task: SummarizationTask

    def path(self) -> Path:
        """Returns the model's directory.

        Raises:
            ModelError: it is not to be had.
        """
        from edgefed.models.finding import resolve_model

        try:
            return resolve_model(self.model, self.models)
        except ModelError as error:
            if self.model in self.models:
                raise
            raise ModelError(
                f"{error}. Name its directory with --model, or a federation.toml that has it under [models] with "
                "--config"
            ) from error

    def load(self, quantization: Quantization = Quantization.FP32, threads: int = 0) -> LoadedModel:
        """Returns the model, loaded; 0 threads leave the choice to torch.

        Raises:
            ModelError: it is not to be had, or not in this quantization.
            KeyboardInterrupt: Ctrl-C, also where a library has lost it.
        """
        from edgefed.stopping import heeded_interrupts

        path = self.path()
        with heeded_interrupts() as heed:
            from edgefed.training.base_model import load_base

            base = load_base(path, quantization.value, threads=threads or None)
            heed()
        return base


def work_of(
    config: Path | None,
    model: str = "",
    *,
    source_field: str | None = None,
    target_field: str | None = None,
    prompt: str | None = None,
) -> Work:
    """Returns what the command line asks for; what it leaves out is as in the file, or as in an empty one.

    Args:
        config: a federation.toml, or None.
        model: the base model's name; "" takes the file's.
        source_field: name of the text's field.
        target_field: name of the summary's field.
        prompt: what the model reads, with {source} in it.

    Raises:
        ConfigError: nothing says which model; the file is wrong; or the prompt leaves the text out.
    """
    from msgspec.structs import asdict

    from edgefed.protocol.tasks import SummarizationTask

    task, models = SummarizationTask(), {}
    if config is not None:
        from edgefed.config import read_federation

        options = read_federation(config)
        model, task, models = model or options.model.name, options.task, options.models
    if not model:
        raise ConfigError("which base model? Name it with --model, or give a federation.toml with --config")
    given = {"source": source_field, "target": target_field, "prompt": prompt}
    try:
        task = SummarizationTask(**{**asdict(task), **{key: text for key, text in given.items() if text is not None}})
    except ValueError as error:
        raise ConfigError(f"--prompt {prompt!r}: {error}") from None
    return Work(model, models, task)


@dataclass(frozen=True, slots=True, eq=False)
class ReadAdapter:
    """A PEFT adapter in memory.

    Attributes:
        directory: where it is.
        factors: module path -> ΔW, all of one rank.
        base_model: the name of the base model that its config gives; may be empty.
    """

    directory: Path
    factors: Mapping[str, LowRank]
    base_model: str

    def check_fits(self, work: Work) -> None:
        """Compares it with the base model's files, before anything is loaded; warns of another base model's name.

        Raises:
            AdapterError: the model lacks a module of it, or has one of another shape.
        """
        from edgefed.models.checkpoint import linear_shapes

        path = work.path()
        try:
            shapes = linear_shapes(path, sorted({module.rpartition(".")[2] for module in self.factors}))
        except ModelError as error:
            raise AdapterError(f"{self.directory} does not fit the base model {work.model}: {error}") from error
        for module, matrix in self.factors.items():
            if matrix.shape != shapes.get(module):
                needed = f"of shape {shapes[module]}" if module in shapes else "without it"
                raise AdapterError(
                    f"{self.directory} does not fit: it changes module {module!r} of shape {matrix.shape}, "
                    f"and the base model {work.model} is {needed}"
                )
        if self.base_model and not _same_model(self.base_model, work):
            warning = f"{self.directory} was made for {self.base_model}, and is used on {work.model}"
            typer.echo(f"edgefed: warning: {warning}; its scores mean little if these are different weights", err=True)


def read_adapter(path: Path) -> ReadAdapter:
    """Reads the PEFT adapter in a directory that is one, or in a run's directory (the best, else the last).

    Raises:
        AdapterError: there is none, or it is malformed.
    """
    from edgefed.lora.peft_files import read_peft

    for candidate in (path, path / "adapter-best", path / "adapter"):
        if (candidate / "adapter_config.json").is_file():
            factors, base_model = read_peft(candidate)
            return ReadAdapter(candidate, _of_one_rank(factors), base_model)
    if (path / "global").is_dir():
        raise AdapterError(f"the run in {path} has written no adapter yet; `edgefed export` takes one out of it")
    raise AdapterError(f"{path} holds no PEFT adapter (adapter_config.json), nor is it an aggregator's run directory")


def _of_one_rank(factors: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Returns the same matrices, those of less than the largest rank with columns and rows of zeros added."""
    import numpy as np

    from edgefed.lora.low_rank import LowRank

    most = max(matrix.rank for matrix in factors.values())
    return {
        module: LowRank(
            np.pad(matrix.left, ((0, 0), (0, most - matrix.rank))),
            np.pad(matrix.right, ((0, most - matrix.rank), (0, 0))),
        )
        for module, matrix in factors.items()
    }


def _same_model(name: str, work: Work) -> bool:
    def place(model: str) -> Path:
        return Path(work.models.get(model, model)).expanduser().resolve()

    return name == work.model or place(name) == place(work.model)


def check_output(directory: Path, *, force: bool) -> Path:
    """Returns the absolute path of an adapter directory that may be written; its parents are made.

    Raises:
        ConfigError: something is there, and it is not an adapter that may be replaced.
    """
    from edgefed.cli.output import told_where

    directory = directory.absolute()
    with told_where(directory):
        if directory.exists() and not force:
            raise ConfigError(f"{directory} exists already; --force replaces an adapter")
        if not directory.is_dir() and directory.exists():
            raise ConfigError(f"{directory} is a file; --output names a directory")
        if directory.exists() and any(directory.iterdir()) and not (directory / "adapter_config.json").is_file():
            raise ConfigError(f"{directory} holds something that is no adapter; it is not replaced")
        directory.parent.mkdir(parents=True, exist_ok=True)
    return directory


class Progress(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Shows that `done` of `total` is done."""
        ...


def _stay_silent(done: int, total: int, note: str = "") -> None:
    """Shows nothing."""


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Lends what moves a progress bar on the terminal's stderr; elsewhere it does nothing."""
    if not sys.stderr.isatty():
        yield _stay_silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def move(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{what}  {note}" if note else what)

        yield move
