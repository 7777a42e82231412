"""`edgefed profile`: what this machine really is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgefed.agent.network_probe import NetworkProbe
    from edgefed.agent.options import AgentOptions
    from edgefed.devices.profile import DeviceProfile

__all__ = ["measure", "profile"]


def profile(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The device's agent.toml: its broker, limits and state.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Under 3 s: int8, nf4 and fp16 as remembered, or left out.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
) -> None:
    """Measure this machine: memory, rates by data type, storage, sensors, and the way to the aggregator.

    Every figure says how it was measured, and one that is missing says why. With --config the result is remembered in
    the agent's state directory; the network is measured where the broker and an aggregator answer. Takes about 15 s.

    Examples:
      edgefed profile                          this machine, as it is
      edgefed profile --quick --json           what takes more than a moment is left out
      edgefed profile --config agent.toml      with the way through the broker to the aggregator
    """
    import asyncio

    from edgefed.cli.output import write_json

    measured = asyncio.run(measure(config, quick=quick))
    if json:
        import msgspec

        write_json(msgspec.to_builtins(measured))
    else:
        from edgefed.cli.profile_view import print_profile

        print_profile(measured)


async def measure(config: Path | None, *, quick: bool) -> DeviceProfile:
    """Returns the profile of this machine, or of the device that an agent.toml describes, measured now."""
    import asyncio
    import tempfile

    from edgefed.agent.options import AgentOptions
    from edgefed.agent.profiler import Profiler
    from edgefed.agent.worker_process import WorkerProcess
    from edgefed.cli.output import told_where
    from edgefed.config import read_agent
    from edgefed.data.source import DataSource
    from edgefed.devices.instruments import find_instruments

    async with contextlib.AsyncExitStack() as stack:
        network, offline = None, "no agent.toml was named with --config, so there is no broker to measure through"
        if config is None:
            options = AgentOptions(device="this-machine", fleet="none", data=DataSource(path="none"))
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_writable_here())))
        else:
            options = read_agent(config)
            directory = Path(options.state)
            with told_where(directory):
                directory.mkdir(parents=True, exist_ok=True)
            network, offline = await _connect(options, stack)
        worker = WorkerProcess(silence_s=options.worker.silence_s)
        stack.push_async_callback(worker.end)
        gpu = options.worker.device != "cpu"
        instruments = await asyncio.to_thread(find_instruments, Path(options.root), gpu=gpu)
        profiler = Profiler(options, directory, worker, network, offline=offline, instruments=instruments)
        on_step = stack.enter_context(_progress())
        if quick:  # the worker is busy loading torch while the network is measured
            await asyncio.gather(
                profiler.measure(quick=True, on_step=on_step), profiler.measure_network(quick=True, on_step=on_step)
            )
        else:
            await profiler.measure(on_step=on_step)
            await profiler.measure_network(on_step=on_step)
        return profiler.profile()


def _writable_here() -> str | None:
    """Returns the present directory, whose storage is what a user means; None (the system's choice) elsewhere."""
    import os

    return "." if os.access(".", os.W_OK) else None


async def _connect(options: AgentOptions, stack: contextlib.AsyncExitStack) -> tuple[NetworkProbe | None, str]:
    """Returns a probe that hears its answers, or None and why there is none."""
    import asyncio

    from edgefed.agent.network_probe import NetworkProbe
    from edgefed.agent.session import authorship_as_told
    from edgefed.errors import MessageError, TransportError
    from edgefed.protocol.messages.down import Pong, decode_down
    from edgefed.protocol.topics import Topics
    from edgefed.transport.base import Message
    from edgefed.transport.mqtt import connect_mqtt
    from edgefed.transport.options import guarded_client_id
    from edgefed.transport.signed import signed_as_told

    topics = Topics(options.fleet)
    down = topics.device(options.device, "down")
    mqtt = options.broker.mqtt(guarded_client_id(f"{options.fleet}-{options.device}-profile"), session_expiry_s=0)
    try:
        authorship = authorship_as_told(options)
        transport = signed_as_told(await stack.enter_async_context(connect_mqtt(mqtt)), authorship)
        await transport.subscribe(down)
    except TransportError as error:
        return None, str(error)
    probe = NetworkProbe(transport, topics, options.device)

    async def listen() -> None:
        async for event in transport.events():
            if isinstance(event, Message):
                with contextlib.suppress(MessageError):
                    answer = decode_down(event.payload)
                    if isinstance(answer, Pong):
                        probe.hear(answer)

    listening = asyncio.create_task(listen(), name="listen")

    async def stop() -> None:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    stack.push_async_callback(stop)
    return probe, ""


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yields what shows a step on stderr while it is under way; nothing where nobody watches."""
    import sys

    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("measuring") as status:
        yield lambda what: status.update(f"measuring: {what}")
