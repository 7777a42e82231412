"""An agent from its options to its end: directory, connection, worker, supervisor; and a clean goodbye."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgefed.agent.options import AgentOptions
from edgefed.agent.presence import Presence
from edgefed.agent.state_directory import StateDirectory
from edgefed.agent.supervisor import Supervisor
from edgefed.agent.worker_process import WorkerProcess
from edgefed.devices.instruments import find_instruments
from edgefed.errors import ConfigError, DataError, DeviceIdTaken
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.topics import Topics
from edgefed.security.identities import Identity
from edgefed.transport.base import Message
from edgefed.transport.mqtt import connect_mqtt
from edgefed.transport.options import guarded_client_id
from edgefed.transport.signed import signed_as_told, will_as_told
from edgefed.updates.health import HealthFile
from edgefed.updates.places import Home, own_home

if TYPE_CHECKING:
    from edgefed.security.authorship import Authorship

__all__ = ["authorship_as_told", "run_agent"]


async def run_agent(
    options: AgentOptions,
    *,
    once: bool = False,
    wait_for_broker: bool = True,
    worker: WorkerProcess | None = None,
    home: Home | None = None,
) -> None:
    """Runs an agent until it is cancelled, or with `once` until the federation is over.

    Args:
        options: what `agent.toml` says.
        once: return when the federation is over.
        wait_for_broker: keep trying when no broker answers at first.
        worker: who trains; without one, the worker that comes with edgefed.
        home: where this agent is installed; without one, where this process runs from, if an installer made that.

    Raises:
        DataError: the examples are not where the options say.
        ConfigError: the state directory, the root or the password file cannot be used.
        DeviceIdTaken: another live agent uses this device id.
        TransportError: no broker answers and `wait_for_broker` is off, or it refuses this client.
    """
    for path in filter(None, (options.data.path, options.data.validation)):
        if not Path(path).exists():
            raise DataError(f"data: there is no file or directory {path}")
    root = Path(options.root)
    if not any((root / name).is_dir() for name in ("proc", "sys")):
        raise ConfigError(f"root: there is neither proc nor sys in {root}: name the directory that they are mounted in")
    state = StateDirectory(Path(options.state))
    health = HealthFile(state.path)
    health.started()  # whoever watches sees that it runs, also where no broker answers
    worker = worker or WorkerProcess(silence_s=options.worker.silence_s)
    presence = Presence(Topics(options.fleet), options.device)
    # Each process its own client id and no session at the broker: whatever was missed is asked for again, and nothing
    # piles up for a process that is gone.
    mqtt = options.broker.mqtt(guarded_client_id(f"{options.fleet}-{options.device}"), session_expiry_s=0)
    try:
        mqtt.check_files()
        authorship = authorship_as_told(options)
        will = will_as_told(presence.will, authorship)
        async with connect_mqtt(mqtt, will, retry_first=wait_for_broker) as connected:
            transport = signed_as_told(connected, authorship)
            gpu = options.worker.device != "cpu"
            instruments = await asyncio.to_thread(find_instruments, root, gpu=gpu)
            supervisor = Supervisor(
                options,
                transport,
                presence,
                state,
                worker,
                instruments,
                health,
                home=home or own_home(),
                leave_when_finished=once,
            )
            try:
                await supervisor.run()
            except DeviceIdTaken:
                await transport.close()  # the state topic belongs to the other one
                raise
            finally:
                goodbye = msgspec.structs.replace(presence.state, status="disconnected", note="")
                await asyncio.shield(transport.close(Message(presence.topic, encode(goodbye), retained=True)))
    finally:
        await worker.end()
        state.close()


def authorship_as_told(options: AgentOptions) -> Authorship | None:
    """Returns what signs the agent's messages and judges others'; None where the options do not ask for it.

    Raises:
        ConfigError: the certificate or its key cannot be used, or are another device's.
    """
    broker = options.broker
    if not broker.signed:
        return None
    from edgefed.security.authorship import read_authorship  # megabytes that others need not carry

    return read_authorship(
        Topics(options.fleet),
        Identity("device", options.device),
        Path(options.state),
        ca=Path(broker.tls_ca),
        certificate=Path(broker.tls_certificate),
        key=Path(broker.tls_key),
        revocations=Path(broker.tls_crl) if broker.tls_crl else None,
    )
