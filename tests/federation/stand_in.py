"""A device that speaks the wire but draws its updates at random: what the aggregator cannot tell from a real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from edgefed.files import hash_file
from edgefed.lora.files import write_adapter
from edgefed.lora.low_rank import LowRank
from edgefed.lora.tensor_file import write_tensors
from edgefed.models.checkpoint import fingerprint, linear_shapes
from edgefed.protocol.chunks import Ranges
from edgefed.protocol.messages.down import Accepted, Acknowledged, UploadGrant, decode_down
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import FederationFinished, RoundMessage, RoundOpen, decode_round
from edgefed.protocol.messages.up import EvaluationReport, Join, UpdateOffer
from edgefed.protocol.messages.wire import encode
from edgefed.protocol.records import EvaluationRecord, RoundRecord
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message, Transport
from edgefed.transport.blob_sender import send_ranges
from edgefed.transport.mqtt import MqttOptions, connect_mqtt
from edgefed.transport.options import guarded_client_id

FLEET = "test"


def make_paper_model(directory: Path, *, modules: int = 2, size: int = 24, seed: int = 0) -> Path:
    """Makes a model directory that has everything the aggregator looks at: headers, configuration, tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {
        f"encoder.block.{block}.layer.0.SelfAttention.{name}.weight": random.normal(size=(size, size)).astype("f4")
        for block in range(modules)
        for name in ("q", "v")
    }
    write_tensors(directory / "model.safetensors", tensors, {"format": "pt"})
    numbers = {"d_model": size, "d_kv": size // 4, "d_ff": 2 * size, "num_heads": 4, "num_layers": modules}
    (directory / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 32, **numbers}))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text("{}")
    return directory


def federation_toml(model: Path, directory: Path, port: int, **tables: str) -> str:
    """Returns a federation.toml for the paper model; `tables` adds lines to a table by its name."""
    head = f'fleet = "{FLEET}"\nrounds = 3\nseed = 1\ndirectory = "{directory}"\n' + tables.pop("top", "")
    defaults = {
        "model": f'name = "{model}"\n',
        "method": "ranks = [2, 4]\n",
        "selection": "",
        "evaluation": "",
        "transfers": "broadcast_settle_s = 0.1\n",
        "broker": f"port = {port}\n",
    }
    return head + "".join(f"[{name}]\n{text}{tables.get(name, '')}\n" for name, text in defaults.items())


@dataclass
class StandIn:
    """One stand-in device.

    Attributes:
        name: device id.
        model: directory of its base model.
        rank: rank of its updates.
        edit: changes its update before it is written.
        offer_edit: changes its offer before it is sent.
        tls: its certificate, as options of `MqttOptions`.
        signed: puts signatures on its transport.
    """

    name: str
    model: Path
    scratch: Path
    port: int
    rank: int = 2
    examples: int = 10
    edit: Callable[[dict[str, LowRank]], dict[str, LowRank]] = lambda adapter: adapter
    offer_edit: Callable[[UpdateOffer], UpdateOffer] = lambda offer: offer
    write_raw: bytes | None = None
    tls: dict[str, str] = field(default_factory=dict)
    signed: Callable[[Transport], Transport] = lambda transport: transport
    acknowledged: list[Acknowledged] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    finished: FederationFinished | None = None

    async def take_part(self, *, on_accepted: Callable[[RoundOpen], None] = lambda _: None) -> None:
        """Takes part in every round until the federation is over."""
        async with self._connected() as transport:
            inbox: asyncio.Queue[RoundMessage | object] = asyncio.Queue()
            reader = asyncio.create_task(self._read(transport, inbox))
            try:
                await self._rounds(transport, inbox, on_accepted)
            finally:
                reader.cancel()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Transport]:
        client_id = guarded_client_id(f"stand-in-{self.name}")
        options = MqttOptions(
            "127.0.0.1", self.port, client_id=client_id, session_expiry_s=0, reconnect_max_s=0.5, **self.tls
        )
        async with connect_mqtt(options, retry_first=True) as connected:
            transport = self.signed(connected)
            topics = Topics(FLEET)
            await transport.subscribe(topics.device(self.name, "down"))
            await transport.subscribe(topics.round)
            yield transport

    async def _read(self, transport: Transport, inbox: asyncio.Queue[object]) -> None:
        async for event in transport.events():
            if isinstance(event, Message):
                on_round = event.topic == Topics(FLEET).round
                inbox.put_nowait(decode_round(event.payload) if on_round else decode_down(event.payload))

    async def _rounds(  # noqa: C901 - one branch per message is how it is read
        self, transport: Transport, inbox: asyncio.Queue[object], on_accepted: Callable[[RoundOpen], None]
    ) -> None:
        announced: RoundOpen | None = None
        offer: UpdateOffer | EvaluationReport | None = None
        done: set[int] = set()
        while True:
            try:
                message = await asyncio.wait_for(inbox.get(), 1.0)
            except asyncio.TimeoutError:
                if announced is not None and announced.round not in done:
                    await self._say(transport, offer or self._join(announced))
                continue
            if isinstance(message, FederationFinished):
                if announced is not None and announced.run == message.run:  # not one that the broker kept from before
                    self.finished = message
                    return
                continue
            if isinstance(message, RoundOpen):
                if announced is None or message.round != announced.round:
                    offer = None
                announced = message
                if announced.round not in done:
                    await self._say(transport, offer or self._join(announced))
            elif isinstance(message, Accepted) and announced is not None and message.round == announced.round:
                on_accepted(announced)
                if offer is None:
                    offer = self._answer(announced)
                await self._say(transport, offer)
            elif isinstance(message, UploadGrant) and isinstance(offer, UpdateOffer):
                await send_ranges(
                    transport,
                    Topics(FLEET).device(self.name, "up"),
                    self._path(offer.round),
                    offer.sha256,
                    Ranges(message.missing),
                    chunk_bytes=message.chunk_bytes,
                )
            elif isinstance(message, Acknowledged):
                self.acknowledged.append(message)
                done.add(message.round)
            elif hasattr(message, "reason"):
                self.refused.append(message.reason)

    async def _say(self, transport: Transport, message: msgspec.Struct) -> None:
        await transport.publish(Topics(FLEET).device(self.name, "up"), encode(message))

    def _join(self, announced: RoundOpen) -> Join:
        return Join(
            run=announced.run,
            round=announced.round,
            plan=self._plan(announced),
            fingerprint=fingerprint(self.model),
            model=self.model.name,
            examples=self.examples,
        )

    def _plan(self, announced: RoundOpen) -> Plan:
        return Plan(rank=self.rank, held_rank=min(self.rank, announced.manifest.rank), quantization="fp32")

    def _answer(self, announced: RoundOpen) -> UpdateOffer | EvaluationReport:
        evaluation = EvaluationRecord(loss=2.0 / announced.round, target_tokens=100, examples=5, evaluate_s=0.1)
        record = RoundRecord(
            device=self.name,
            round=announced.round,
            rank=self.rank,
            held_rank=self.rank,
            quantization="fp32",
            examples=self.examples,
            evaluation=evaluation if announced.evaluates else None,
        )
        if announced.kind == "evaluate":
            return EvaluationReport(run=announced.run, round=announced.round, record=record)
        path = self._path(announced.round)
        self._write(announced, path)
        offer = UpdateOffer(
            run=announced.run,
            round=announced.round,
            sha256=hash_file(path),
            size_bytes=path.stat().st_size,
            plan=self._plan(announced),
            fingerprint=fingerprint(self.model),
            model=self.model.name,
            examples=self.examples,
            record=record,
        )
        return self.offer_edit(offer)

    def _write(self, announced: RoundOpen, path: Path) -> None:
        if self.write_raw is not None:
            path.write_bytes(self.write_raw)
            return
        random = np.random.default_rng([announced.round, *self.name.encode()])
        shapes = linear_shapes(self.model, announced.method.target_modules)
        adapter = {
            module: LowRank(
                random.normal(size=(m, self.rank)).astype("f4"), random.normal(size=(self.rank, n)).astype("f4")
            )
            for module, (m, n) in shapes.items()
        }
        write_adapter(path, self.edit(adapter), precision="fp32")

    def _path(self, round_: int) -> Path:
        return self.scratch / f"{self.name}-{round_}.safetensors"
