"""`edgefed aggregator`: runs a federation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgefed.logs import Form
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
    log_json: Annotated[bool, typer.Option("--log-json", help="Log a JSON object a line, on stderr.")] = False,
) -> None:
    """Run a federation: open rounds, combine updates, write the adapter.

    Everything it acknowledges is on disk first. Stopped or killed and started again with the same file, it goes on
    where it was. In the run's directory are, at the end, `adapter` and `adapter-best` (PEFT adapters),
    `history.jsonl` and `report.html`; `edgefed report` makes a report at any time before.

    Examples:
      edgefed aggregator --config federation.toml
      edgefed aggregator -c federation.toml --json | tee states.jsonl
      edgefed aggregator -c federation.toml --metrics-port 9464
      edgefed -v aggregator --log-json 2> log.jsonl
    """
    import logging

    from edgefed.config import read_federation
    from edgefed.coordinator.metrics import MetricsAddress
    from edgefed.coordinator.session import run_aggregator
    from edgefed.logs import start_logging
    from edgefed.stopping import run_stoppable

    form = start_logging(logging.getLogger().getEffectiveLevel(), as_json=log_json)
    options = read_federation(config)
    metrics = None if metrics_port is None else MetricsAddress(metrics_host, metrics_port)
    running = run_aggregator(options, watch=_watcher(json, form), wait_for_broker=not require_broker, metrics=metrics)
    reason = run_stoppable(running)
    if not json:
        run = Path(options.directory)
        typer.echo(f"{reason}; the adapter is in {run / 'adapter'}, the report in {run / 'report.html'}")


def _watcher(as_json: bool, form: Form) -> Callable[[AggregatorState], None]:
    """Returns what shows each state: JSON lines on stdout; on stderr a progress line, a line each, or log entries."""
    import logging

    from edgefed.logs import printable
    from edgefed.protocol.messages.wire import encode

    log = logging.getLogger(__name__)
    log.setLevel(logging.INFO)  # as people see them without -v too

    def write_json(state: AggregatorState) -> None:
        typer.echo(printable(encode(state).decode()))

    def write_line(state: AggregatorState) -> None:
        from edgefed.cli.fleet_view import describe_aggregator

        text = describe_aggregator(state)
        typer.echo(f"\r\x1b[2K{text}" if sys.stderr.isatty() else text, err=True, nl=not sys.stderr.isatty())

    def write_entry(state: AggregatorState) -> None:
        from edgefed.cli.fleet_view import describe_aggregator

        about = {"state": describe_aggregator(state), "round": state.round, "rounds": state.rounds}
        log.info("%(state)s", {**about, "phase": state.phase, "status": state.status})

    return write_json if as_json else write_line if form == "plain" else write_entry
