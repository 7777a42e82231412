"""`edgefed store`: what an aggregator keeps of a run, when something has happened to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgefed.files import in_shell

__all__ = ["check", "recover", "store"]

_RUN = typer.Argument(help="The aggregator's directory; no aggregator may be at work in it: end it first.")


def store() -> None:
    """Look after what an aggregator has kept of a run.

    Every row of its store and every adapter carries a digest. An aggregator looks at all of them when it starts, and
    does not go on with what is not as it was written.

    Examples:
      edgefed store check edgefed-run
      edgefed store recover edgefed-run
    """


def check(run: Annotated[Path, _RUN]) -> None:
    """Say what of a run is whole, and how to go on from it.

    The run must stand still: end its aggregator first. When it is started again, it goes on where it was.

    Exit codes: 9 where something is damaged, or there is no run.

    Examples:
      edgefed store check edgefed-run
    """
    from edgefed.coordinator.recovery import examine
    from edgefed.errors import StoreError

    found = examine(run)
    whole = ", ".join(str(number) for number in found.whole) or "none"
    typer.echo(f"rounds over: {found.last}; whole adapters are kept of rounds: {whole}")
    if not found.troubles:
        typer.echo("all is as it was written")
        return
    for trouble in found.troubles:
        typer.echo(f"damaged: {trouble}")
    if not found.whole:
        raise StoreError(f"nothing in {run} can be gone on from: begin another federation in a directory of its own")
    raise StoreError(
        f"something in {run} is damaged: `edgefed store recover {in_shell(run)}` goes on from the adapter after round "
        f"{found.whole[-1]}, and keeps what is damaged aside"
    )


def recover(
    run: Annotated[Path, _RUN],
    round_: Annotated[
        int | None, typer.Option("--round", help="Whose adapter to go on from.  [default: the last whole one]", min=0)
    ] = None,
) -> None:
    """Make a damaged run whole again, from the last round that is.

    The round that was open is given up, with what had been delivered for it, and the federation goes on in the next one
    when the aggregator is started again. What was damaged is kept in RUN/damaged-1 and so on.

    Exit codes: 9 where there is too little left to go on from.

    Examples:
      edgefed store recover edgefed-run
      edgefed store recover edgefed-run --round 7
    """
    from edgefed.coordinator.recovery import recover as recover_run

    done = recover_run(run, round_)
    typer.echo(f"the federation goes on from the adapter after round {done.of}, in round {done.given_up + 1}")
    lost = f"{done.unused} updates that had been accepted are in no sum; " if done.unused else ""
    typer.echo(f"{lost}the damaged store is in {done.aside}. Start the aggregator again")
