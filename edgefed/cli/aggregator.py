"""`edgefed aggregator`: runs a federation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgefed.protocol.messages.retained import AggregatorState

__all__ = ["aggregator"]


def aggregator(
    config: Annotated[Path, typer.Option("--config", "-c", help="The federation.toml.")] = Path("federation.toml"),
    require_broker: Annotated[
        bool, typer.Option("--require-broker", help="Fail when no broker answers, instead of trying again.")
    ] = False,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve metrics for Prometheus on this port, at /metrics.", min=1, max=65535)
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="The address they are served on; 0.0.0.0 lets everybody read them.")
    ] = "127.0.0.1",
    json: Annotated[bool, typer.Option("--json", help="Write each change of state as a line of JSON.")] = False,
) -> None:
    """Run a federation: open rounds, combine updates, write the adapter.

    Everything it acknowledges is on disk first. Stopped or killed and started again with the same file, it goes on
    where it was. In the run's directory are, at the end, `adapter` and `adapter-best` (PEFT adapters),
    `history.jsonl` and `report.html`; `edgefed report` makes a report at any time before.

    Examples:
      edgefed aggregator --config federation.toml
      edgefed aggregator -c federation.toml --json | tee states.jsonl
      edgefed aggregator -c federation.toml --metrics-port 9464
    """
    from edgefed.config import read_federation
    from edgefed.coordinator.metrics import MetricsAddress
    from edgefed.coordinator.session import run_aggregator
    from edgefed.stopping import run_stoppable

    options = read_federation(config)
    metrics = None if metrics_port is None else MetricsAddress(metrics_host, metrics_port)
    running = run_aggregator(options, watch=_watcher(json), wait_for_broker=not require_broker, metrics=metrics)
    reason = run_stoppable(running)
    if not json:
        run = Path(options.directory)
        typer.echo(f"{reason}; the adapter is in {run / 'adapter'}, the report in {run / 'report.html'}")


def _watcher(as_json: bool) -> Callable[[AggregatorState], None]:
    """Returns what shows each new state: JSON lines, a progress line on a terminal, or a line per change elsewhere."""
    from edgefed.protocol.messages.wire import encode

    def write_json(state: AggregatorState) -> None:
        typer.echo(encode(state).decode())

    def write_line(state: AggregatorState) -> None:
        from edgefed.cli.fleet_view import describe_aggregator

        text = describe_aggregator(state)
        typer.echo(f"\r\x1b[2K{text}" if sys.stderr.isatty() else text, err=True, nl=not sys.stderr.isatty())

    return write_json if as_json else write_line
