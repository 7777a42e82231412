"""An aggregator from its options to its end: model, store, connection, service; and a clean goodbye."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgefed.aggregation.exchange import Exchange
from edgefed.aggregation.exchanges import EXCHANGES
from edgefed.coordinator.metrics import MetricsAddress, serve_metrics
from edgefed.coordinator.notices import aggregator_will
from edgefed.coordinator.options import FederationOptions
from edgefed.coordinator.roster import share_roster
from edgefed.coordinator.run_directory import RunDirectory, disk_trouble_told
from edgefed.coordinator.run_records import write_report
from edgefed.coordinator.service import Aggregator
from edgefed.coordinator.store import Store
from edgefed.errors import FederationFailed
from edgefed.models.checkpoint import fingerprint
from edgefed.models.finding import resolve_model
from edgefed.protocol.messages.retained import AggregatorState
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.tasks import ModelReference
from edgefed.protocol.topics import Topics
from edgefed.security.authorship import Authorship, read_authorship
from edgefed.security.identities import AGGREGATOR
from edgefed.transport.base import Message
from edgefed.transport.mqtt import connect_mqtt
from edgefed.transport.options import guarded_client_id
from edgefed.transport.signed import signed_as_told, will_as_told

__all__ = ["run_aggregator"]

_MAY_CHANGE = frozenset(
    {"aggregator", "directory", "roster", "broker", "transfers", "models", "robustness", "rounds", "target_loss"}
)
"""Settings that a federation may be continued with though they differ; the rest is its identity.

Robustness is among them: who finds a hostile device in the middle of a run can act without giving the run up.
"""


async def run_aggregator(
    options: FederationOptions,
    *,
    watch: Callable[[AggregatorState], None] | None = None,
    wait_for_broker: bool = True,
    metrics: MetricsAddress | None = None,
) -> str:
    """Runs a federation from wherever its store stands to its end, and returns why it ended.

    Args:
        options: what `federation.toml` says.
        watch: called with each new state.
        wait_for_broker: keep trying when no broker answers at first.
        metrics: where Prometheus finds them; None serves none.

    Raises:
        ModelError: the base model is not to be had, or lacks the target modules.
        StoreError: the run's store is in use, damaged, full, or of another federation.
        TransportError: no broker answers and `wait_for_broker` is off, or it refuses this client.
        FleetTaken: another aggregator serves the fleet.
        FederationFailed: it is over, and has not reached its last round or its target.
        ConfigError: options that do not go together, or metrics that cannot be served there.
    """
    path = resolve_model(options.model.name, options.models)
    found = await asyncio.to_thread(fingerprint, path)
    model = ModelReference(name=options.model.name, fingerprint=found)
    exchange = EXCHANGES[_tag(options)](
        options.method,
        options.server_optimizer,
        model_path=path,
        model_name=options.model.name,
        seed=options.seed,
        memory_limit_bytes=options.aggregator.merge_memory_bytes,
        privacy=options.client_privacy,
        robustness=options.robustness,
    )
    directory = Path(options.directory)
    store = Store.open(directory, _identity(options, model))
    show = watch or (lambda _: None)
    try:
        share_roster(RunDirectory(directory).roster, Path(options.roster) if options.roster else None)
        with disk_trouble_told(directory), serve_metrics(metrics, store, show) as show:
            reason = await _federate(options, model, store, exchange, show, wait_for_broker=wait_for_broker)
        await asyncio.to_thread(write_report, store)
        return reason
    except FederationFailed:
        await asyncio.to_thread(write_report, store)  # of what there was: somebody will want to know why
        raise
    finally:
        store.close()


async def _federate(
    options: FederationOptions,
    model: ModelReference,
    store: Store,
    exchange: Exchange,
    watch: Callable[[AggregatorState], None],
    *,
    wait_for_broker: bool,
) -> str:
    topics = Topics(options.fleet)
    # Each process its own client id: with a common one, a second aggregator would throw the first one off the broker
    # before it could learn that there is one.
    mqtt = options.broker.mqtt(guarded_client_id(f"{options.fleet}-aggregator"), session_expiry_s=0)
    instance = uuid.uuid4().hex
    mqtt.check_files()
    authorship = _authorship_as_told(options)
    will = will_as_told(aggregator_will(topics, instance), authorship)
    async with connect_mqtt(mqtt, will, retry_first=wait_for_broker) as connected:
        transport = signed_as_told(connected, authorship)
        aggregator = Aggregator(options, model, store.run, instance, transport, store, exchange, watch=watch)
        try:
            return await aggregator.run()
        finally:
            goodbye = aggregator.goodbye()
            final = None if goodbye is None else Message(topics.aggregator_state, encode(goodbye), retained=True)
            await asyncio.shield(transport.close(final))


def _authorship_as_told(options: FederationOptions) -> Authorship | None:
    broker = options.broker
    if not broker.signed:
        return None
    return read_authorship(
        Topics(options.fleet),
        AGGREGATOR,
        Path(options.directory),
        ca=Path(broker.tls_ca),
        certificate=Path(broker.tls_certificate),
        key=Path(broker.tls_key),
        revocations=Path(broker.tls_crl) if broker.tls_crl else None,
    )


def _tag(options: FederationOptions) -> str:
    return str(options.method.__struct_config__.tag)


def _identity(options: FederationOptions, model: ModelReference) -> dict[str, Any]:
    settings = {key: value for key, value in msgspec.to_builtins(options).items() if key not in _MAY_CHANGE}
    return {**settings, "model": msgspec.to_builtins(model)}
