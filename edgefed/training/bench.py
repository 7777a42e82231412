"""The micro-benchmark of arXiv 2310.03150: steps of LoRA training on random tokens, by the code that trains in a round.

What a machine reaches is told by the layout and not by the values of the weights, so random ones do. The matrix-product
rate that MFU compares with is measured first, in the same process and on the same threads.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import transformers

from edgefed import __version__
from edgefed.data.examples import Example
from edgefed.devices.compute import ComputeProfile, DataType, MachineProbe
from edgefed.devices.measurement import absent, measured
from edgefed.devices.memory import read_host_memory, training_memory
from edgefed.errors import ConfigError, DataError, ModelError
from edgefed.models.checkpoint import check_directory, linear_shapes
from edgefed.models.finding import resolve_model
from edgefed.models.layout import FLAN_T5, ModelLayout, read_layout
from edgefed.models.random_checkpoint import layout_tensors, write_random_checkpoint
from edgefed.protocol.records import RoundRecord
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.adapters import AdaptedModel, install
from edgefed.training.base_model import compute_dtype, load_base, pick_device
from edgefed.training.bench_work import BenchOutcome, BenchWork, Shape
from edgefed.training.loop import train
from edgefed.training.lora_round import with_training
from edgefed.training.options import LoraOptions, TrainOptions
from edgefed.training.probe import matmul_rate, read_gpu
from edgefed.training.round_work import Suspend
from edgefed.training.steps import StepRecord, summed
from edgefed.training.summarization import collate
from edgefed.training.suspension import Suspended
from edgefed.training.worker_memory import forget_peak, peak_memory_bytes, peak_resident_bytes

__all__ = ["BenchReport", "Stage", "bench", "least_bytes", "shape_layout"]

Stage = Literal["writing", "measuring", "loading", "warming", "training"]
BenchReport = Callable[[Stage, int, int], None]
"""Called with what is being done and how much of it; raises `Suspend` to stop and keep the steps that were measured."""

_PEAK_S = 0.8
_DTYPES: dict[DataType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_EXAMPLES = 64  # at most so many different ones: tokenizing is timed, making them up is not


def bench(work: BenchWork, report: BenchReport) -> BenchOutcome:
    """Returns the record of the measured steps; of those that were done, where `report` raised `Suspend` among them.

    Raises:
        ConfigError: a rank is larger than the smallest matrix that it shall change.
        DataError: no text of so many tokens can be made with the checkpoint's tokenizer.
        ModelError: disk or memory has no room, the checkpoint cannot be used, or the hardware is not there.
        Suspend: `report` raised it before the first measured step was done.
        WorkerError: training diverged, or memory ran out.
    """
    if work.threads:
        torch.set_num_threads(work.threads)
    place = pick_device(work.hardware)
    directory, layout = Path(work.directory), _possible(work, place)
    if not directory.exists():
        write_random_checkpoint(
            directory, layout, stored=work.stored, seed=work.seed, report=lambda done, of: report("writing", done, of)
        )
    report("measuring", 0, 1)
    dtype = compute_dtype(work.quantization, place)
    kind = next(name for name, one in _DTYPES.items() if one is dtype)
    machine = _machine(kind, place)
    report("loading", 0, 1)
    forget_peak()
    started_s = time.monotonic()
    base = load_base(directory, work.quantization, work.hardware)
    load_s = time.monotonic() - started_s
    options = LoraOptions(rank=work.rank)
    modules = list(linear_shapes(directory, work.target_modules))
    model = install(base, modules, options, seed=work.seed, held_rank=work.held_rank)
    examples, task = _random_examples(model.tokenizer, work)
    record = RoundRecord(
        device="this-machine",
        round=0,
        rank=work.rank,
        held_rank=work.held_rank,
        quantization=work.quantization,
        examples=len(examples),
        load_s=load_s,
        peak_resident_bytes=peak_resident_bytes(),
        gradient_checkpointing=work.gradient_checkpointing,
        live_peak_flops_per_s=machine.compute.flops_per_s[kind].value,
    )
    return BenchOutcome(
        record=_measured(model, examples, task, work, record, report),
        kind=kind,
        machine=machine,
        software=_software(work, place),
    )


def least_bytes(layout: ModelLayout, work: BenchWork, dtype: torch.dtype) -> int:
    """Returns what training takes at the very least: weights, factors with AdamW's two moments, and the logits.

    Activations come on top; less memory than this cannot do.

    Args:
        layout: of the base.
        work: precision of the base, ranks, batch.
        dtype: that it is computed in.
    """
    unquantized = layout.embedding_parameters + layout.other_parameters
    a_weight_bytes = {"int8": 1.0, "nf4": 0.5}.get(work.quantization, dtype.itemsize)
    base_bytes = int(layout.linear_parameters * a_weight_bytes) + unquantized * dtype.itemsize
    factors_bytes = 16 * layout.lora_parameters(work.target_modules, work.rank)  # value, gradient, two moments in fp32
    logits_bytes = 8 * work.batch_size * work.target_tokens * layout.vocabulary  # and their gradient, in fp32
    return base_bytes + factors_bytes + logits_bytes


def shape_layout(shape: Shape) -> ModelLayout:
    """Returns a shape's numbers."""
    if shape == "tiny":
        return replace(read_layout(resolve_model("edgefed/tiny-t5"), shape), stored_bytes=None)
    return FLAN_T5[f"google/{shape}"]


def _possible(work: BenchWork, place: torch.device) -> ModelLayout:
    """Returns the layout; refuses what cannot be, before gigabytes are written for it."""
    if work.quantization in ("int8", "nf4") and find_spec("bitsandbytes") is None:
        raise ModelError(
            f"{work.quantization} needs bitsandbytes, which is not installed: pip install 'edgefed[train]', or bench "
            "fp32 or bf16"
        )
    layout = _layout(work)
    _check_ranks(layout, work)
    _check_memory(layout, work, place)
    return layout


def _layout(work: BenchWork) -> ModelLayout:
    """Returns the layout of what is in the directory, or will be."""
    directory = Path(work.directory)
    if work.shape is None:
        return read_layout(check_directory(directory))
    layout = shape_layout(work.shape)
    if directory.exists() and list(layout_tensors(read_layout(directory))) != list(layout_tensors(layout)):
        raise ModelError(f"{directory} holds another model than {layout.name}: move it, or take another place")
    return layout


def _check_ranks(layout: ModelLayout, work: BenchWork) -> None:
    layout.check_targets(work.target_modules)
    smallest = min(min(one.rows, one.columns) for one in layout.linears() if one.name in work.target_modules)
    for name, rank in (("rank", work.rank), ("held rank", work.held_rank)):
        if rank > smallest:
            raise ConfigError(f"{name} {rank} is over {smallest}, the smaller side of the smallest matrix to change")


def _check_memory(layout: ModelLayout, work: BenchWork, place: torch.device) -> None:
    gpu = read_gpu()[0] if place.type == "cuda" else None
    available = training_memory(read_host_memory(), gpu).available_bytes
    least = least_bytes(layout, work, compute_dtype(work.quantization, place))
    if least > available:
        raise ModelError(
            f"{layout.name} in {work.quantization} takes at least {least / 1e9:.1f} GB for weights, factors and "
            f"logits, and {available / 1e9:.1f} GB of memory are available: take a smaller shape or batch, or nf4"
        )


def _random_examples(tokenizer: Any, work: BenchWork) -> tuple[list[Example], SummarizationTask]:
    """Returns texts of random tokens that training cuts to exactly the lengths asked for."""
    task = SummarizationTask(
        prompt="{source}", max_source_tokens=work.source_tokens, max_target_tokens=work.target_tokens
    )
    draw = random.Random(work.seed)
    plain = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    count = min((work.warmup_steps + work.steps) * work.batch_size, max(_EXAMPLES, work.batch_size))
    wanted = (work.source_tokens, work.target_tokens)
    for surplus in (1, 2, 4, 8):  # what was drawn as several tokens may be read as fewer

        def text(tokens: int, surplus: int = surplus) -> str:
            return str(tokenizer.decode(draw.choices(plain, k=tokens * surplus), skip_special_tokens=True))

        examples = [Example(text(work.source_tokens), text(work.target_tokens)) for _ in range(count)]
        if set(collate(tokenizer, task, examples, torch.device("cpu")).lengths) == {wanted}:
            return examples, task
    raise DataError(f"no text of {wanted[0]} and {wanted[1]} tokens can be made with the tokenizer in {work.directory}")


def _measured(
    model: AdaptedModel,
    examples: Sequence[Example],
    task: SummarizationTask,
    work: BenchWork,
    record: RoundRecord,
    report: BenchReport,
) -> RoundRecord:
    """Returns the record with what was measured; the first steps, in which caches and moments are made, are not."""
    options = TrainOptions(
        steps=work.warmup_steps + work.steps,
        batch_size=work.batch_size,
        gradient_checkpointing=work.gradient_checkpointing,
        seed=work.seed,
    )
    timed: list[StepRecord] = []
    began_s = time.monotonic()

    def on_step(step: StepRecord) -> None:
        nonlocal began_s
        if step.step >= work.warmup_steps:
            timed.append(step)
            report("training", len(timed), work.steps)
        elif step.step + 1 < work.warmup_steps:
            report("warming", step.step + 1, work.warmup_steps)
        else:
            report("training", 0, work.steps)
            began_s = time.monotonic()

    report("warming" if work.warmup_steps else "training", 0, work.warmup_steps or work.steps)
    forget_peak()
    try:
        train(model, examples, task, options, on_step)
    except Suspended:
        if not timed:
            raise Suspend from None
    train_s = time.monotonic() - began_s
    peak_bytes, resident_bytes = peak_memory_bytes(model.device), peak_resident_bytes()
    return msgspec.structs.replace(
        with_training(record, summed(timed, work.batch_size), timed, train_s),
        peak_memory_bytes=peak_bytes,
        peak_resident_bytes=max(resident_bytes, record.peak_resident_bytes or 0),
    )


def _machine(kind: DataType, place: torch.device) -> MachineProbe:
    """Returns what computes, with the rate of matrix products that was reached in one data type."""
    rate, size = matmul_rate(_DTYPES[kind], place, _PEAK_S)
    gpu, why_no_gpu = read_gpu() if place.type == "cuda" else (None, "the bench computed on the CPU")
    if place.type == "cuda":
        torch.cuda.empty_cache()
    compute = ComputeProfile(
        hardware="cpu" if gpu is None else "cuda",
        threads=torch.get_num_threads(),
        flops_per_s={kind: measured(rate, f"torch.mm {size}×{size}×{size}")},
        memory_bandwidth_bytes_per_s=absent("a bench measures matrix products only"),
        torch_version=str(torch.__version__),
    )
    return MachineProbe(compute=compute, gpu=gpu, why_no_gpu=why_no_gpu)


def _software(work: BenchWork, place: torch.device) -> str:
    """Returns versions, of bitsandbytes only where it has computed."""
    said = [f"edgefed {__version__}", f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    if work.quantization in ("int8", "nf4"):
        import bitsandbytes

        said.append(f"bitsandbytes {bitsandbytes.__version__}")
    if place.type == "cuda":
        said.append(f"CUDA {torch.version.cuda}")
    return ", ".join(said)
