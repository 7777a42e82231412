"""The aggregator's ear: whatever a device says is taken in, answered or refused, and never ends the aggregator."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgefed.aggregation.lora_exchange import LoraExchange
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.coordinator import events
from edgefed.coordinator.broadcast import Broadcast
from edgefed.coordinator.deliveries import Deliveries
from edgefed.coordinator.intake import Intake
from edgefed.coordinator.ledger import Ledger
from edgefed.coordinator.options import FederationOptions, Transfers
from edgefed.coordinator.reception import Reception
from edgefed.coordinator.refusals import Refusals
from edgefed.coordinator.run_directory import RunDirectory
from edgefed.coordinator.selection import Selection
from edgefed.coordinator.sightings import Sightings
from edgefed.coordinator.store import Store
from edgefed.devices.profile import read_profile
from edgefed.errors import MessageError
from edgefed.models.checkpoint import fingerprint
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import DeviceState
from edgefed.protocol.messages.up import (
    Decline,
    EvaluationReport,
    Join,
    PartRanges,
    PartsWanted,
    Ping,
    UpdateOffer,
)
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.records import EvaluationRecord, RoundRecord
from edgefed.protocol.tasks import LoraMethod, ModelReference
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message
from edgefed.transport.in_memory import InMemoryBroker
from tools.fuzzing.engine import Target
from tools.fuzzing.mutations import damaged, json_document, wrong_numbers

__all__ = ["aggregator_target"]

_FLEET, _RUN = "fuzz", "0a1b2c3d"
_INPUTS_PER_AGGREGATOR = 100
_BYTES_OF_ANOTHER = 8 * 2**20


class _Aggregator:
    """Everything that hears devices, with a real store, in round 1 of 3; one of its two devices is the enemy."""

    def __init__(self, directory: Path, model: Path) -> None:
        reference = ModelReference(name=str(model), fingerprint=fingerprint(model))
        options = FederationOptions(
            fleet=_FLEET,
            rounds=3,
            directory=str(directory),
            model=reference,
            selection=Selection(expected_devices=2),
            transfers=Transfers(max_update_bytes=1 << 20),
        )
        self.store = Store.open(directory, {})
        ledger = Ledger(self.store, options.rules)
        run = RunDirectory(directory)
        exchange = LoraExchange(
            LoraMethod(ranks=[2]), ServerOptimizer(), model_path=model, model_name=str(model), seed=0
        )
        state = exchange.begin(run.state(0))
        topics = Topics(_FLEET)
        broadcast = Broadcast(InMemoryBroker().connect("aggregator"), topics, chunk_bytes=1024, settle_s=0.0)
        broadcast.offer(state.files)
        self.part = state.manifest.parts[0]
        self.intake = Intake(
            run.incoming,
            options.transfers,
            tell=self._tell,
            arrived=lambda *_: None,
            broke=lambda error: (_ for _ in ()).throw(error),
            max_payload_bytes=lambda: 1_000_000,
        )
        refusals = Refusals(self.store)
        says: Any = {"tell": self._tell, "perform": lambda _: None}
        deliveries = Deliveries(
            options, reference, _RUN, self.store, ledger, exchange, run, self.intake, refusals, **says
        )
        self._reception = Reception(
            options, reference, _RUN, ledger, deliveries, self.intake, (broadcast,), Sightings(run), refusals, **says
        )
        for event in (events.Begin(), events.DeviceJoined("one"), events.DeviceJoined("two")):
            ledger.apply(event)

    def hear(self, channel: str, payload: bytes) -> None:
        """Takes a message of the device."""
        self._reception.hear(Message(f"edgefed/v1/{_FLEET}/device/one/{channel}", payload))

    def _tell(self, device: str, message: msgspec.Struct) -> None:
        assert device == "one"
        encode(message)


def aggregator_target(scratch: Path, model: Path) -> Target:
    """Returns the target. A new aggregator takes over after every hundred messages."""
    aggregators = (_Aggregator(scratch / f"run-{number}", model) for number in itertools.count())
    first = next(aggregators)
    samples = _samples(model, first.part.sha256)
    read = _reader(first, aggregators.__next__)
    mutations = (damaged, wrong_numbers, json_document, json_document)
    return Target("aggregator", read, MessageError, samples, mutations, _BYTES_OF_ANOTHER)


def _reader(first: _Aggregator, successor: Callable[[], _Aggregator]) -> Callable[[bytes], object]:
    current, heard = first, 0

    async def hear(payload: bytes) -> None:
        try:
            current.hear(_channel(payload), payload)
        finally:
            await current.intake.close()

    def read(payload: bytes) -> None:
        nonlocal current, heard
        heard += 1
        if heard % _INPUTS_PER_AGGREGATOR == 0:
            current.store.close()
            current = successor()
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(hear(payload))

    return read


def _channel(payload: bytes) -> str:
    if b'"edgefed_version"' in payload:
        return "profile"
    return "state" if b'"since_unix_s"' in payload else "up"


def _samples(model: Path, part: str) -> tuple[bytes, ...]:
    plan, sha256 = Plan(rank=2, held_rank=2, quantization="fp32"), "0123456789abcdef" * 4
    record = RoundRecord(
        device="one",
        round=1,
        rank=2,
        held_rank=2,
        quantization="fp32",
        examples=3,
        evaluation=EvaluationRecord(loss=2.5, target_tokens=9, examples=3, evaluate_s=0.1),
    )
    same = fingerprint(model)
    said = (
        Join(run=_RUN, round=1, plan=plan, fingerprint=same, examples=3),
        Decline(run=_RUN, round=1, reason="no time"),
        PartsWanted(run=_RUN, parts=[PartRanges(sha256=part, missing=[(0, 100), (200, 300)])]),
        UpdateOffer(
            run=_RUN, round=1, sha256=sha256, size_bytes=2048, plan=plan, fingerprint=same, examples=3, record=record
        ),
        EvaluationReport(run=_RUN, round=1, record=record),
        Ping(nonce="0a", sequence=1, answer_bytes=10, padding="x"),
        DeviceState(status="training", instance="a"),
        read_profile(model, quantization="auto", max_rank=0),
    )
    return tuple(map(encode, said))
