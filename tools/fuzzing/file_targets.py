"""What is read from files: adapters, configuration, boards, and what a device or a run keeps for itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import torch

import edgefed
from edgefed.agent.profiler import Identity, Remembered, _read
from edgefed.aggregation.lora_exchange import LoraExchange
from edgefed.aggregation.method import load_state
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.config import example_agent, example_federation, read_agent, read_federation
from edgefed.data.examples import read_examples
from edgefed.devices.board_files import load_board, profiles_directory
from edgefed.devices.measurement import absent
from edgefed.devices.storage import StorageProfile
from edgefed.errors import AdapterError, ConfigError, DataError, ModelError, WorkerError
from edgefed.lora.adapters import initial_adapter
from edgefed.lora.files import join_layers, read_adapter, split_layers, write_adapter
from edgefed.lora.peft_files import read_peft, write_peft
from edgefed.lora.precision import Precision
from edgefed.models.checkpoint import linear_shapes, tensor_shapes, weight_files
from edgefed.models.layout import read_layout
from edgefed.planner.history import History, Outcome, decode_history
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.up import EvaluationReport, UpdateOffer, decode_up
from edgefed.protocol.tasks import LoraMethod
from edgefed.reports.reference import BenchFile, BenchResult, read_references
from edgefed.training.steps import StepRecord
from edgefed.training.suspension import Suspension, read_suspension, write_suspension
from tools.fuzzing.engine import Target
from tools.fuzzing.mutations import (
    Mutation,
    damaged,
    json_document,
    json_lines,
    safetensors,
    toml_document,
    wrong_numbers,
)
from tools.fuzzing.wire_targets import PROBED, golden

__all__ = ["MODEL", "file_targets"]

MODEL = Path(edgefed.__file__).parent / "assets" / "tiny_t5"
_JSON: tuple[Mutation, ...] = (damaged, wrong_numbers, json_document, json_document)
_TENSORS: tuple[Mutation, ...] = (damaged, safetensors, safetensors)
_TOML_BYTES = 16 * 2**20  # tomllib keeps every beginning of a dotted key: 10 MiB for one of 3,000 parts
_TOML: tuple[Mutation, ...] = (damaged, toml_document, toml_document)
_SHAPES = {"encoder.q": (6, 5), "encoder.v": (4, 5)}
_RANK = 3


def file_targets(scratch: Path) -> tuple[Target, ...]:
    """Returns the readers; each input is written to a file in `scratch` first, as it would come from a disk."""
    return (*_adapter_targets(scratch), *_kept_targets(scratch), *_written_targets(scratch))


def _adapter_targets(scratch: Path) -> tuple[Target, ...]:
    """Adapters and models, some of which come from strangers."""
    adapters = tuple(_adapter(scratch, precision) for precision in ("fp32", "fp16", "int8"))
    layers = _layers(scratch)
    exchange, update, state, manifest = _exchange(scratch)

    def check(path: Path) -> None:
        exchange.check(path, Plan(rank=2, held_rank=0, quantization="fp32"), scratch / "state-0")

    def load(path: Path) -> object:
        return exchange.load(path.parent)

    return (
        Target("adapter", _file(scratch / "adapter.safetensors", read_adapter), AdapterError, adapters, _TENSORS),
        Target("update", _file(scratch / "update", check), AdapterError, (update,), _TENSORS),
        Target("rank layer", _layer_reader(scratch, layers), AdapterError, layers, _TENSORS),
        Target("server state", _file(scratch / "state", load_state), AdapterError, (state,), _TENSORS),
        Target("state manifest", _file(scratch / "kept/manifest.json", load), AdapterError, (manifest,), _JSON),
        *_peft_targets(scratch),
        *_model_targets(scratch),
    )


def _kept_targets(scratch: Path) -> tuple[Target, ...]:
    """What a device keeps for itself; damaged is as good as not there."""
    return (
        Target("plans.json", _read_history, None, (_history(),), _JSON),
        Target("measured profile", _file(scratch / "profile.json", _read), None, (_remembered(),), _JSON),
        Target("suspended training", _suspension_reader(scratch), WorkerError, (_suspension(scratch),), _TENSORS),
    )


def _written_targets(scratch: Path) -> tuple[Target, ...]:
    """What people write: configuration, boards, references, examples."""
    agent, federation = _without_prose(example_agent()), _without_prose(example_federation())
    boards = tuple(path.read_bytes() for path in sorted(profiles_directory().glob("*.toml"))[::6])
    examples = (b'{"dialogue": "a", "summary": "b"}\n{"dialogue": "c\\u00e9", "summary": "d", "more": [1, null]}\n',)
    tables = (b'dialogue,summary\n"a, b",c\nd,"e\n""f"""\n', "\ufeffdialogue,summary\r\né,x\r\n".encode())

    def read_data(path: Path) -> object:
        return read_examples(path, source_field="dialogue", target_field="summary")

    return (
        Target("agent.toml", _file(scratch / "agent.toml", read_agent), ConfigError, (agent,), _TOML, _TOML_BYTES),
        Target(
            "federation.toml",
            _file(scratch / "federation.toml", read_federation),
            ConfigError,
            (federation,),
            _TOML,
            _TOML_BYTES,
        ),
        Target("board", _board_reader(scratch), ConfigError, boards, _TOML, _TOML_BYTES),
        Target("reference", _file(scratch / "reference.json", read_references), ConfigError, (_bench_file(),), _JSON),
        Target(
            "examples.jsonl", _file(scratch / "examples.jsonl", read_data), DataError, examples, (damaged, json_lines)
        ),
        Target("examples.csv", _file(scratch / "examples.csv", read_data), DataError, tables, (damaged,)),
    )


def _file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    path.parent.mkdir(parents=True, exist_ok=True)

    def write_and_read(payload: bytes) -> object:
        path.write_bytes(payload)
        return read(path)

    return write_and_read


# ---------------------------------------------------------------------- adapters and models


def _adapter(scratch: Path, precision: Precision) -> bytes:
    path = scratch / "sample.safetensors"
    write_adapter(path, initial_adapter(_SHAPES, _RANK, seed=1), precision=precision)
    return path.read_bytes()


def _layers(scratch: Path) -> tuple[bytes, ...]:
    """Two layers of one adapter."""
    directory = scratch / "layers"
    directory.mkdir()
    paths = split_layers(initial_adapter(_SHAPES, _RANK, seed=1), ((0, 1), (1, _RANK)), directory, "fp16")
    return tuple(path.read_bytes() for path in paths)


def _layer_reader(scratch: Path, layers: tuple[bytes, ...]) -> Callable[[bytes], object]:
    """Joins a layer with two good ones, in the place of which it may stand."""

    def join(path: Path) -> object:
        good = [directory / f"layer-{low:04d}-{high:04d}.safetensors" for low, high in ((0, 1), (1, _RANK))]
        content = path.read_bytes()
        if content in layers:
            return join_layers(good)
        return join_layers([good[0], path]) if b'"low":"1"' in content else join_layers([path, good[1]])

    directory = scratch / "layers"
    return _file(directory / "fuzzed.safetensors", join)


def _exchange(scratch: Path) -> tuple[LoraExchange, bytes, bytes, bytes]:
    """An exchange, and what belongs to it: an update, the server's state and its manifest."""
    method = LoraMethod(target_modules=["q"], ranks=[2])
    exchange = LoraExchange(method, ServerOptimizer(), model_path=MODEL, model_name="tiny", seed=1)
    exchange.begin(scratch / "state-0")
    path = scratch / "sample.safetensors"
    write_adapter(path, initial_adapter(linear_shapes(MODEL, ["q"]), 2, seed=1), precision="int8")
    state, manifest = (scratch / "state-0" / name for name in ("state.safetensors", "manifest.json"))
    return exchange, path.read_bytes(), state.read_bytes(), manifest.read_bytes()


def _peft_targets(scratch: Path) -> Iterable[Target]:
    directory = scratch / "peft"
    write_peft(directory, initial_adapter(_SHAPES, _RANK, seed=1), base_model="tiny")
    weights, config = (directory / name for name in ("adapter_model.safetensors", "adapter_config.json"))
    samples = weights.read_bytes(), config.read_bytes()

    def read(path: Path) -> object:
        try:
            return read_peft(path.parent)
        finally:  # the other target reads it as well
            weights.write_bytes(samples[0])
            config.write_bytes(samples[1])

    yield Target("PEFT weights", _file(weights, read), AdapterError, samples[:1], _TENSORS)
    yield Target("PEFT config", _file(config, read), AdapterError, samples[1:], _JSON)


def _model_targets(scratch: Path) -> Iterable[Target]:
    directory = scratch / "model"
    directory.mkdir()
    (weights,) = weight_files(MODEL)
    with weights.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = header_bytes.to_bytes(8, "little") + file.read(header_bytes)
    (directory / "model.safetensors").write_bytes(header)
    config = (MODEL / "config.json").read_bytes()
    yield Target("model header", _file(scratch / "header", tensor_shapes), ModelError, (header,), _TENSORS)
    yield Target(
        "model config",
        _file(directory / "config.json", lambda path: read_layout(path.parent)),
        ModelError,
        (config,),
        _JSON,
    )


# ---------------------------------------------------------------------- what a device keeps


def _history() -> bytes:
    sizes = {name: 2**30 for name in Outcome.__struct_fields__ if name.endswith("_bytes")}
    outcome = Outcome(
        model="tiny", hardware="cpu", quantization="fp32", predicted_step_s=0.5, step_s=0.6, plan="rank 4", **sizes
    )
    return msgspec.json.encode(History(outcomes=(outcome, msgspec.structs.replace(outcome, peak_bytes=None))))


def _read_history(payload: bytes) -> None:
    """Reads it and asks it everything that a planner asks."""
    history = decode_history(payload)
    history.memory_correction("tiny", "cpu", "fp32")
    history.time_correction("tiny", "cpu", "fp32")
    history.time_correction("tiny", "cpu", "nf4")


def _remembered() -> bytes:
    identity = Identity(
        edgefed="0.1.0",
        torch="2.6",
        bitsandbytes="",
        power_mode="15W",
        gpus=["a"],
        cpus=4,
        memory_total_bytes=2**33,
        hardware="auto",
        threads=0,
    )
    storage = StorageProfile(
        total_bytes=2**38,
        free_bytes=2**36,
        file_system="ext4",
        read_bytes_per_s=absent("no"),
        write_bytes_per_s=absent("no"),
        sync_s=absent("no"),
    )
    return msgspec.json.encode(Remembered(identity=identity, machine=PROBED, storage=storage, measured_unix_s=1.7e9))


def _trainable() -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
    parameters = [torch.ones(3, 4, requires_grad=True), torch.ones(2, 3, requires_grad=True)]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    for one in parameters:
        one.grad = torch.ones_like(one)
    return parameters, optimizer


def _suspension(scratch: Path) -> bytes:
    parameters, optimizer = _trainable()
    optimizer.step()
    step = StepRecord(
        step=0,
        loss=2.5,
        source_tokens=9,
        target_tokens=5,
        model_flops=1e9,
        gradient_norm=0.5,
        data_s=0.1,
        forward_s=0.2,
        backward_s=0.3,
        optimizer_s=0.1,
    )
    path = scratch / "sample.suspended"
    write_suspension(path, "key", Suspension.of(parameters, optimizer, [step]))
    return path.read_bytes()


def _suspension_reader(scratch: Path) -> Callable[[bytes], object]:
    """Reads it and goes on from it, as training does."""

    def resume(path: Path) -> None:
        suspension = read_suspension(path, "key")
        if suspension is not None:
            parameters, optimizer = _trainable()
            suspension.restore(parameters, optimizer)
            optimizer.step()

    return _file(scratch / "fuzzed.suspended", resume)


# ---------------------------------------------------------------------- what people write


def _without_prose(example: str) -> bytes:
    """The example's tables and keys, those that it shows as comments among them: prose only takes time to read."""
    lines = [line for line in example.splitlines() if re.match(r"(# )?[a-z_0-9]+ = |\[|# \[", line)]
    return "\n".join(lines).encode()


def _board_reader(scratch: Path) -> Callable[[bytes], object]:
    """Reads it under the name that its id asks for, so that the rest of it is looked at too."""

    def read(payload: bytes) -> object:
        found = re.search(rb'^id = "([a-z0-9-]+)"', payload, re.MULTILINE)
        path = scratch / f"{found[1].decode() if found else 'board'}.toml"
        path.write_bytes(payload)
        try:
            return load_board(path)
        finally:
            path.unlink()

    return read


def _bench_file() -> bytes:
    messages = map(decode_up, golden("evaluation-report", "update-offer"))
    records = [message.record for message in messages if isinstance(message, UpdateOffer | EvaluationReport)]
    results = [BenchResult(name=f"round {record.round}", record=record) for record in records]
    return msgspec.json.encode(BenchFile(results=results))
