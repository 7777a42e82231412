"""`edgefed export`: a PEFT adapter of a chosen rank from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="The aggregator's directory.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PEFT adapter directory to write.")],
    rank: Annotated[int, typer.Option(help="Its rank; 0 keeps all there is.", min=0)] = 0,
    best: Annotated[bool, typer.Option("--best", help="Of the best evaluated round instead of the last.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a directory that is there.")] = False,
) -> None:
    """Cut a finished federation's adapter to a rank and write it as PEFT loads it.

    The components are in order of size, so a cut keeps the most of the change that its rank can.

    Examples:
      edgefed export edgefed-run --rank 8 --output adapter-8
    """
    from edgefed.errors import AdapterError, ConfigError
    from edgefed.lora.adapters import adapter_rank
    from edgefed.lora.peft_files import read_peft, write_peft

    if output.exists() and not force:
        raise ConfigError(f"{output} exists already; --force replaces it")
    source = run / ("adapter-best" if best else "adapter")
    if not (source / "adapter_config.json").is_file():
        raise AdapterError(f"{run} has no {source.name}: the federation has not finished, or nothing was evaluated")
    adapter, base_model = read_peft(source)
    most = adapter_rank(adapter)
    if rank > most:
        raise AdapterError(f"rank {rank} is more than the adapter has: it has {most}")
    modules = sorted({module.rpartition(".")[2] for module in adapter})
    write_peft(output, adapter, base_model=base_model, rank=rank or None, target_modules=modules)
    typer.echo(f"wrote {output}: rank {rank or most}, for {base_model}")
