"""`edgefed demo`: a whole federation on this machine, for real."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgefed.cli.fleet_view import FleetView
    from edgefed.protocol.records import RoundRecord
    from edgefed.simulation.baselines import Comparison
    from edgefed.simulation.demo_plan import DemoPlan
    from edgefed.simulation.local_fleet import LocalFleet

__all__ = ["demo"]


def demo(
    directory: Annotated[Path, typer.Option(help="Where everything goes; an earlier demo there is replaced.")] = Path(
        "edgefed-demo"
    ),
    rounds: Annotated[int, typer.Option(help="Rounds of training.", min=1)] = 10,
    json: Annotated[bool, typer.Option("--json", help="Write the result as one JSON document.")] = False,
) -> None:
    """Run a whole federation on this machine: broker, aggregator and six agents, each a process of its own.

    Every device plays a board with the memory and the link that its agent.toml tells, plans its rank and precision from
    that, and says why; the topics of their dialogues differ. The model is a tiny T5 that ships with edgefed. Nothing is
    downloaded. At the end the federation is compared, on dialogues that no device has seen, with the base model, the
    devices on their own, and training on everything in one place.

    The configuration files it writes are ordinary ones: look at them, change them, use them.

    Examples:
      edgefed demo
      edgefed demo --rounds 3 --directory quick-demo
      edgefed demo --json > demo.json
    """
    from edgefed.extras import require

    require("torch", "transformers", "peft", "numpy", "safetensors", "rouge_score", "sqlalchemy", "jinja2", "amqtt")
    from edgefed.cli.output import write_json
    from edgefed.simulation.demo_plan import DemoPlan, prepare_directory, write_plan
    from edgefed.simulation.local_fleet import free_port
    from edgefed.stopping import run_stoppable

    started_s = time.monotonic()
    prepare_directory(directory)
    plan = DemoPlan(directory.absolute(), free_port(), rounds)
    topics = write_plan(plan)
    for device in plan.devices:
        what = ", ".join(topics[device.name])
        _say(f"  {device.name:12} plays {device.board:21} dialogues about {what}")
    run_stoppable(_federate(plan))
    comparison = run_stoppable(_compare(plan))
    took_s = time.monotonic() - started_s
    if json:
        write_json(_document(plan, comparison, took_s))
    else:
        _show(plan, comparison, took_s)


def _say(text: str) -> None:
    typer.echo(text, err=True)


async def _federate(plan: DemoPlan) -> None:
    """Runs broker, aggregator and agents until the federation is over, and shows it live."""
    from edgefed.cli.fleet_view import FleetView
    from edgefed.simulation.demo_plan import FLEET
    from edgefed.simulation.local_fleet import LocalFleet, wait_for_port

    async with LocalFleet(plan.directory / "logs") as fleet:
        await fleet.start("broker", ["broker", "--port", str(plan.port)])
        await wait_for_port(plan.port)
        aggregator = await fleet.start("aggregator", ["-v", "aggregator", "--config", str(plan.federation)])
        for device in plan.devices:
            await fleet.start(device.name, ["-v", "agent", "--once", "--config", str(plan.agent(device))])
        view = FleetView(FLEET)
        watching = asyncio.create_task(_watch(plan, view))
        try:
            await _until_over(fleet, aggregator, view)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _until_over(fleet: LocalFleet, aggregator: asyncio.subprocess.Process, view: FleetView) -> None:
    from edgefed.errors import FederationFailed

    ending = asyncio.ensure_future(aggregator.wait())
    while not ending.done():
        await asyncio.wait({ending}, timeout=0.5)
        failed = fleet.ended_early()
        if failed:
            ending.cancel()
            raise FederationFailed(f"{failed[0]} ended early; its last words:\n{fleet.last_words(failed[0])}")
        for device, state in view.devices.items():
            if state.status == "ready" and state.note.startswith("round "):
                raise FederationFailed(f"{device} does not take part: {state.note}; see {fleet.log(device)}")


async def _watch(plan: DemoPlan, view: FleetView) -> None:
    """Shows the fleet: a live table on a terminal, a line per change elsewhere."""
    from edgefed.cli.fleet_view import describe_aggregator
    from edgefed.transport.base import Message
    from edgefed.transport.mqtt import MqttOptions, connect_mqtt

    options = MqttOptions("127.0.0.1", plan.port, client_id="demo-view", session_expiry_s=0, protocol="3.1.1")
    async with connect_mqtt(options) as transport:
        for topic_filter in view.filters:
            await transport.subscribe(topic_filter)
        with _live() as live:
            said = ""
            async for event in transport.events():
                if not isinstance(event, Message):
                    continue
                view.hear(event.topic, event.payload)
                if live is not None:
                    live.update(view.render(live.console.width))
                elif view.aggregator is not None and (line := describe_aggregator(view.aggregator)) != said:
                    said = line
                    _say(line)


@contextlib.contextmanager
def _live() -> Any:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=4) as live:
        yield live


async def _compare(plan: DemoPlan) -> Comparison:
    """Has the baselines trained and everything evaluated, in a process of its own, and returns the result."""
    import msgspec

    from edgefed.config import read_federation
    from edgefed.errors import FederationFailed
    from edgefed.simulation.baselines import Comparison, Job, Participant
    from edgefed.simulation.local_fleet import end_with_parent

    plans = _plans(plan)
    participants = [
        Participant(name=device.name, data=str(plan.data(device)), rank=plans[device.name].rank)
        for device in plan.devices
    ]
    job = Job(
        options=read_federation(plan.federation),
        adapter=str(plan.adapter),
        held_out=str(plan.held_out),
        participants=participants,
    )
    job_path, result_path = plan.directory / "comparison-job.json", plan.directory / "comparison.json"
    job_path.write_bytes(msgspec.json.encode(job))
    with (plan.directory / "logs" / "comparison.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edgefed.simulation.baselines",
            str(job_path),
            str(result_path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            await _follow(process, steps=len(participants) + 3)
            await process.wait()  # its output ends a moment before it does
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
    if process.returncode:
        raise FederationFailed(f"the comparison failed; see {plan.directory / 'logs' / 'comparison.log'}")
    return msgspec.json.decode(result_path.read_bytes(), type=Comparison)


def _plans(plan: DemoPlan) -> dict[str, RoundRecord]:
    """Returns every device's record of the last round that it trained in."""
    import msgspec

    from edgefed.protocol.records import RoundRecord

    records: dict[str, RoundRecord] = {}
    for line in (plan.run / "history.jsonl").read_text().splitlines():
        for name, told in msgspec.json.decode(line)["devices"].items():
            record = msgspec.convert(told["record"], RoundRecord)
            if record.steps:
                records[name] = record
    return records


async def _follow(process: asyncio.subprocess.Process, *, steps: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    assert process.stdout is not None
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("loading the model", total=steps)
        done = -1
        async for line in process.stdout:
            done += 1
            text = line.decode().strip()
            progress.update(task, completed=done, description=text)
            if progress.disable:
                _say(text)
        progress.update(task, completed=steps, description="done")


def _show(plan: DemoPlan, comparison: Comparison, took_s: float) -> None:
    from edgefed.cli.output import write_table

    typer.echo("")
    plans = _plans(plan)
    write_table(
        ("device", "plays (emulated)", "rank", "base", "because"),
        [
            (device.name, device.board, plans[device.name].rank, plans[device.name].quantization, told)
            for device in plan.devices
            if (told := plans[device.name].plan_reason)
        ],
    )
    median = comparison.median_local
    rows = [
        ("base model", comparison.base),
        (f"local-only, median device ({median.name})", median),
        ("federation", comparison.federation),
        ("centralized", comparison.centralized),
    ]
    typer.echo(f"\nOn dialogues that no device has, after {comparison.steps} steps on each device:")
    write_table(
        ("", "loss", "ROUGE-1", "ROUGE-2", "ROUGE-L"),
        [
            (name, *(f"{value:.3f}" for value in (score.loss, score.rouge1, score.rouge2, score.rouge_l)))
            for name, score in rows
        ],
    )
    for number, sample in enumerate(comparison.samples, 1):
        typer.echo(f"\n{number}. {' / '.join(sample.source.splitlines())}")
        for name, text in (("wanted", sample.reference), ("base", sample.base), ("federation", sample.federation)):
            typer.echo(f"   {name:11} {text}")
    typer.echo(f"\nadapter (PEFT): {plan.adapter}")
    typer.echo(f"report:         {plan.run / 'report.html'}")
    typer.echo(f"records:        {plan.run / 'history.jsonl'}")
    typer.echo(f"configuration:  {plan.federation} and {plan.directory / 'devices'}")
    typer.echo(f"took {took_s:.0f} s")


def _document(plan: DemoPlan, comparison: Comparison, took_s: float) -> dict[str, Any]:
    import msgspec

    return {
        **msgspec.to_builtins(comparison),
        "plans": {
            name: {
                "emulated": record.emulated,
                "rank": record.rank,
                "quantization": record.quantization,
                "reason": record.plan_reason,
            }
            for name, record in _plans(plan).items()
        },
        "median_local": comparison.median_local.name,
        "adapter": str(plan.adapter),
        "history": str(plan.run / "history.jsonl"),
        "report": str(plan.run / "report.html"),
        "took_s": took_s,
    }
