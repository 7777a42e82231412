"""What arrives over the network, and what a worker says: control messages, profiles, chunks, frames, a first packet."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import msgspec

from edgefed.agent.frames import (
    Answer,
    Bench,
    Benched,
    Cancel,
    Failed,
    Finished,
    Prepare,
    Prepared,
    Probe,
    Probed,
    Progress,
    Request,
    Suspend,
    Work,
    decode_answer,
    decode_request,
    encode_frame,
)
from edgefed.cli.fleet_view import FleetView
from edgefed.data.source import DataSource
from edgefed.devices.compute import ComputeProfile, MachineProbe
from edgefed.devices.measurement import absent, measured
from edgefed.errors import ChunkError, MessageError, WorkerError
from edgefed.protocol.chunks import CHUNK_HEADER_BYTES, Ranges, decode_chunk, encode_chunk
from edgefed.protocol.messages.down import UploadGrant, decode_down
from edgefed.protocol.messages.retained import RoundOpen, decode_aggregator_state, decode_device_state, decode_round
from edgefed.protocol.messages.up import EvaluationReport, PartsWanted, UpdateOffer, decode_up
from edgefed.protocol.messages.wire import encode
from edgefed.reports.utilization import measure
from edgefed.training.bench_work import BenchOutcome, BenchWork
from edgefed.training.round_work import RoundWork, TrainingSet
from edgefed.transport.blob_receiver import IncomingBlob
from tools.fuzzing.engine import Target
from tools.fuzzing.mutations import Mutation, damaged, json_document, wrong_numbers
from tools.fuzzing.signed_targets import signed_targets

__all__ = ["PROBED", "golden", "wire_targets"]

_GOLDEN = Path(__file__).parents[2] / "tests" / "protocol" / "golden"
_TEXT: tuple[Mutation, ...] = (damaged, wrong_numbers, json_document, json_document)
_UP = ("join", "decline", "parts-wanted", "update-offer", "evaluation-report", "ping")
_DOWN = ("accepted", "refused", "upload-grant", "upload-progress", "acknowledged", "pong")

PROBED = MachineProbe(
    compute=ComputeProfile(
        hardware="cpu",
        threads=4,
        flops_per_s={"fp32": measured(2e11, "torch.mm"), "int8": absent("no kernel")},
        memory_bandwidth_bytes_per_s=measured(1e10, "copy"),
    ),
    why_no_gpu="there is no NVIDIA driver",
)


def wire_targets(scratch: Path) -> tuple[Target, ...]:
    """Returns the readers; files that they need lie in `scratch`."""
    return (
        Target("up", _read_up, MessageError, golden(*_UP), _TEXT),
        Target("down", _read_down, MessageError, golden(*_DOWN), _TEXT),
        Target("round", _read_round, MessageError, golden("round-open", "finished"), _TEXT),
        Target("device state", _read_state, MessageError, golden("device-state", "aggregator-state"), _TEXT),
        Target("device profile", _fleet_reader("device/one/profile"), None, golden("device-profile"), _TEXT),
        Target("chunk", decode_chunk, ChunkError, _chunks(), (damaged,)),
        Target("blob", _blob_reader(scratch / "blob"), ChunkError, (b"".join(_chunks()),), (damaged, _shuffled_chunks)),
        Target("worker answer", lambda line: encode_frame(decode_answer(line)), WorkerError, _answers(), _TEXT),
        Target("worker request", lambda line: encode_frame(decode_request(line)), WorkerError, _requests(), _TEXT),
        Target("MQTT CONNECT", _read_connect, None, (_connect(), _connect(b"device-with-a-longer-name")), (damaged,)),
        *signed_targets(scratch / "signed"),
    )


def golden(*names: str) -> tuple[bytes, ...]:
    """Returns recorded control messages."""
    return tuple((_GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n") for name in names)


def _read_up(payload: bytes) -> None:
    """Reads a device's message as the aggregator does, and does with it what is done before anybody judges it."""
    message = decode_up(payload)
    encode(message)
    if isinstance(message, UpdateOffer | EvaluationReport):
        msgspec.json.encode(measure(message.record))
    if isinstance(message, PartsWanted):
        for part in message.parts:
            Ranges.from_list(part.missing)


def _read_down(payload: bytes) -> None:
    message = decode_down(payload)
    encode(message)
    if isinstance(message, UploadGrant):
        Ranges.from_list(message.missing).subtract(Ranges([(0, 2048)]))


def _read_round(payload: bytes) -> None:
    message = decode_round(payload)
    encode(message)
    if isinstance(message, RoundOpen):
        assert message.manifest.size_bytes >= 0
        assert message.manifest.rank >= 0


def _read_state(payload: bytes) -> None:
    """Reads it as either state, which differ in their status."""
    decode = decode_device_state if b'"since_unix_s"' in payload else decode_aggregator_state
    encode(decode(payload))


def _fleet_reader(topic: str) -> Callable[[bytes], object]:
    """What `edgefed status` does with a retained message; it leaves aside what does not decode."""

    def read(payload: bytes) -> object:
        view = FleetView("fuzz")
        view.hear(f"{view.topics.root}/{topic}", payload)
        return msgspec.json.encode(view.as_json())

    return read


# ---------------------------------------------------------------------- chunks

_PIECE_BYTES = 100
_BLOB = bytes(range(256)) * 2
_SHA256 = hashlib.sha256(_BLOB).hexdigest()
_FRAME_BYTES = CHUNK_HEADER_BYTES + _PIECE_BYTES


def _chunks() -> tuple[bytes, ...]:
    pieces = Ranges([(0, len(_BLOB))]).chunked(_PIECE_BYTES)
    return tuple(encode_chunk(_SHA256, lo, len(_BLOB), _BLOB[lo:hi]) for lo, hi in pieces)


def _shuffled_chunks(_samples: Sequence[bytes], random: Random) -> bytes:
    """Chunks in any order, some twice, some damaged."""
    frames = list(_chunks()) * random.choice((1, 2))
    random.shuffle(frames)
    if random.random() < 0.7:
        at = random.randrange(len(frames))
        frames[at] = damaged(frames[at : at + 1], random)[:_FRAME_BYTES]
    return b"".join(frames)


def _blob_reader(directory: Path) -> Callable[[bytes], object]:
    """Takes frames, as an intake does, into a real file; half of the time over what an earlier receiver left."""

    def read(payload: bytes) -> None:
        blob = IncomingBlob(directory, _SHA256, len(_BLOB), max_bytes=1 << 20)
        try:
            for at in range(0, len(payload), _FRAME_BYTES):
                blob.receive(decode_chunk(payload[at : at + _FRAME_BYTES]))
            assert blob.finish().read_bytes() == _BLOB
        finally:
            if len(payload) % 2:
                blob.discard()
            blob.close()
            blob.path.unlink(missing_ok=True)

    shutil.rmtree(directory, ignore_errors=True)
    return read


# ---------------------------------------------------------------------- the worker's frames


def _answers() -> tuple[bytes, ...]:
    record = decode_up(golden("update-offer")[0]).record  # type: ignore[union-attr]
    training_set = TrainingSet(examples=7, source_tokens=9, target_tokens=5)
    answers: tuple[Answer, ...] = (
        Prepared(model_path="/models/t5", fingerprint="f" * 64, training_set=training_set),
        Progress(stage="training", step=3, steps=16, loss=5.25),
        Finished(record=record),
        Probed(machine=PROBED),
        Benched(outcome=BenchOutcome(record=record, kind="bf16", machine=PROBED, software="torch 2")),
        Failed(kind="data", message="line 3: not JSON"),
    )
    return tuple(encode_frame(answer) for answer in answers)


def _requests() -> tuple[bytes, ...]:
    announced = decode_round(golden("round-open")[0])
    offer = decode_up(golden("update-offer")[0])
    assert isinstance(announced, RoundOpen)
    assert isinstance(offer, UpdateOffer)
    data = DataSource(path="data.jsonl")
    work = RoundWork(
        announced=announced,
        device="one",
        data=data,
        models={"a": "b"},
        plan=offer.plan,
        parts=["part"],
        output="update",
        residual="residual",
    )
    bench = BenchWork(directory="model", shape="tiny", quantization="fp32")
    requests: tuple[Request, ...] = (
        Prepare(round=announced, data=data, models={}),
        Work(work=work),
        Probe(),
        Bench(work=bench),
        Cancel(),
        Suspend(),
    )
    return tuple(encode_frame(request) for request in requests)


# ---------------------------------------------------------------------- the embedded broker's first packet


def _connect(client_id: bytes = b"device") -> bytes:
    body = b"\0\4MQTT\4\2\0\x3c" + struct.pack("!H", len(client_id)) + client_id
    return bytes([0x10, len(body)]) + body


def _read_connect(payload: bytes) -> None:
    """Reads a first packet as the embedded broker does; what it hangs up on counts as read."""
    from amqtt.adapters import StreamReaderAdapter

    from edgefed.transport.amqtt_broker import _Connect

    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(payload)
        reader.feed_eof()
        await _Connect.read(StreamReaderAdapter(reader))

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(read())
    except (ValueError, struct.error, asyncio.IncompleteReadError, OSError):  # what the broker hangs up on
        return
    finally:
        loop.close()
