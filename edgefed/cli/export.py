"""`edgefed export`: a PEFT adapter of a chosen rank out of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="The aggregator's directory, finished or not; or a PEFT adapter to cut.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PEFT adapter directory to write.")],
    rank: Annotated[int, typer.Option(help="Its rank; 0 keeps all there is.", min=0)] = 0,
    round_: Annotated[
        str, typer.Option("--round", help="best, last, or after how many rounds.  [default: best, else last]")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter that is there.")] = False,
) -> None:
    """Write a federation's adapter as PEFT loads it, at the rank you pick.

    A cut keeps the most of the change that its rank can: the components are in order of size. Of its past rounds a run
    keeps the best, the last, and those that late updates may refer to.

    Examples:
      edgefed export edgefed-run --output adapter
      edgefed export edgefed-run --output adapter-4 --rank 4 --round last
    """
    from edgefed.cli.inference import check_output, read_adapter
    from edgefed.cli.output import told_where
    from edgefed.errors import AdapterError
    from edgefed.lora.adapters import Adapter, adapter_rank
    from edgefed.lora.peft_files import write_peft

    if round_ not in ("", "best", "last") and not (round_.isascii() and round_.isdecimal()):
        raise typer.BadParameter(f"--round is {round_!r}; it is best, last, or a number of rounds")
    place = check_output(output, force=force)
    adapter: Adapter
    if (run / "global").is_dir():
        from edgefed.coordinator.run_adapter import read_run_adapter

        found = read_run_adapter(run, round_)
        adapter, base_model, modules = found.adapter, found.base_model, found.target_modules
        origin = f"after {found.rounds} rounds"
        if found.loss is not None:
            origin += f" (evaluated loss {found.loss:.4f} at rank {adapter_rank(adapter)})"
    else:
        if round_:
            raise AdapterError(f"{run} holds no states to take a round's adapter from; leave --round out")
        read = read_adapter(run)
        adapter, base_model, modules = read.factors, read.base_model, ()
        origin = f"from {read.directory}"
    most = adapter_rank(adapter)
    if rank > most:
        raise AdapterError(f"rank {rank} is more than the adapter has: it has {most}")
    with told_where(place):
        write_peft(place, adapter, base_model=base_model, rank=rank or None, target_modules=modules)
    typer.echo(f"wrote {output}: rank {rank or most} {origin}, for {base_model}")
