"""`edgefed broker`: the embedded MQTT broker."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["broker"]


def broker(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port; 0 takes a free one.", min=0, max=65535)] = 1883,
) -> None:
    """Run an MQTT broker for trying things out.

    It runs until Ctrl-C or SIGTERM, asks for no password, speaks MQTT 3.1.1 without TLS and forgets everything when it
    stops. A fleet that matters runs Mosquitto, EMQX or any other MQTT broker instead.

    Examples:
      edgefed broker                 for processes on this machine
      edgefed broker --host 0.0.0.0  for boards on the same network
    """
    from edgefed.stopping import run_stoppable

    run_stoppable(_serve(host, port))


async def _serve(host: str, port: int) -> None:
    import asyncio

    from edgefed.transport.embedded_broker import embedded_broker

    async with embedded_broker(host, port) as running:
        typer.echo(f"listening on {running.host}:{running.port}; Ctrl-C stops it")
        await asyncio.Event().wait()
