"""`edgefed bench`: how fast this machine trains, and how well it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

if TYPE_CHECKING:
    from edgefed.protocol.tasks import Quantization

__all__ = ["bench"]


class _Shape(str, Enum):
    TINY = "tiny"
    SMALL = "flan-t5-small"
    BASE = "flan-t5-base"
    LARGE = "flan-t5-large"
    XL = "flan-t5-xl"
    XXL = "flan-t5-xxl"


class _Stored(str, Enum):
    FP32 = "fp32"
    BF16 = "bf16"


class _Device(str, Enum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def bench(
    shape: Annotated[_Shape, typer.Option(help="Layout of the model; its weights are random.")] = _Shape.SMALL,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A model's directory, in place of random weights of a shape.")
    ] = None,
    quantization: Annotated[
        list[str] | None,
        typer.Option(
            "--quantization", "-q", help="fp32, bf16, int8, nf4; repeatable, or with commas.  [default: fp32]"
        ),
    ] = None,
    rank: Annotated[int, typer.Option(help="Of the LoRA factors on q and v.", min=1)] = 8,
    held_rank: Annotated[int, typer.Option(help="Of a frozen branch beside them; 0 for none.", min=0)] = 0,
    batch: Annotated[int, typer.Option(help="Examples per step.", min=1)] = 8,
    lengths: Annotated[str, typer.Option(help="Tokens of every input and of every target.")] = "512,128",
    steps: Annotated[int, typer.Option(help="Steps that are measured.", min=1)] = 10,
    warmup: Annotated[int, typer.Option(help="Steps before them.", min=0)] = 2,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations in the backward pass, to save memory.")
    ] = False,
    device: Annotated[_Device, typer.Option(help="Where to compute; auto takes a GPU.")] = _Device.AUTO,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.", min=0)] = 0,
    stored: Annotated[_Stored, typer.Option(help="How the file of random weights keeps them.")] = _Stored.FP32,
    keep: Annotated[
        Path | None, typer.Option(help="Keep that file in this directory, and use the one that is there.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result as a reference.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="A stored result, or a report as JSON, to compare with.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.")] = False,
) -> None:
    """Time steps of LoRA training on this machine: phases, tokens/s, MFU, memory, energy.

    The steps are those of a federation's round, on random tokens and random weights of FLAN-T5's exact layout: nothing
    is downloaded. Each precision has a worker process of its own, which measures the matrix-product rate that MFU
    compares with. Ctrl-C ends after the step under way and keeps what was measured; a second one ends at once.

    Exit codes: 3 for a rank that is too large and for files that cannot be used, 5 for a checkpoint, a GPU or
    bitsandbytes that is not there and for a shape that disk or memory has no room for, 10 where training failed,
    130 after Ctrl-C. Where one precision fails for want of room, the others are still measured.

    Examples:
      edgefed bench                                             FLAN-T5-small in fp32, 8 × (512 + 128) tokens
      edgefed bench --shape flan-t5-base -q fp32,nf4 -o here.json
      edgefed bench --shape flan-t5-xl -q nf4 --stored bf16 --reference h100.json
      edgefed report edgefed-run --reference here.json          a federation's devices beside it
    """
    from edgefed.extras import require

    require("torch", "transformers", "peft", "numpy", "safetensors")
    from edgefed.cli.bench_run import run_benches
    from edgefed.cli.bench_view import write_results
    from edgefed.cli.output import check_output
    from edgefed.reports.reference import read_references
    from edgefed.training.bench_work import BenchWork

    quantizations = _quantizations(quantization)
    source_tokens, target_tokens = _lengths(lengths)
    references = () if reference is None else read_references(reference)
    if output is not None:
        check_output(output)
    with _place(shape, checkpoint, stored, keep) as directory:
        works = [
            BenchWork(
                directory=str(directory),
                shape=None if checkpoint is not None else shape.value,
                stored=stored.value,
                quantization=one,
                rank=rank,
                held_rank=held_rank,
                batch_size=batch,
                source_tokens=source_tokens,
                target_tokens=target_tokens,
                warmup_steps=warmup,
                steps=steps,
                gradient_checkpointing=checkpointing,
                threads=threads,
                hardware=device.value,
            )
            for one in quantizations
        ]
        name = shape.value if checkpoint is None else checkpoint.resolve().name
        done = run_benches(works, name, output)
    write_results(done.results, references, as_json=json)
    if done.exit_code:
        raise typer.Exit(done.exit_code)


def _quantizations(given: list[str] | None) -> list[Quantization]:
    from edgefed.protocol.tasks import Quantization

    names = [name.strip() for text in given or ["fp32"] for name in text.split(",")]
    known = get_args(Quantization)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"--quantization {name!r} is not one of {', '.join(known)}")
    return cast("list[Quantization]", list(dict.fromkeys(names)))


def _lengths(text: str) -> tuple[int, int]:
    try:
        source, target = (int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--lengths {text!r} is not two numbers of tokens, such as 512,128") from None
    if min(source, target) < 2:
        raise typer.BadParameter(f"--lengths {text!r}: a text has at least 2 tokens, one of them its end mark")
    return source, target


@contextmanager
def _place(shape: _Shape, checkpoint: Path | None, stored: _Stored, keep: Path | None) -> Iterator[Path]:
    """Lends the directory of the checkpoint, given or yet to be written."""
    import tempfile

    from edgefed.cli.output import told_where
    from edgefed.models.checkpoint import check_directory

    if checkpoint is not None:
        if keep is not None:
            raise typer.BadParameter("--keep is for random weights, and --checkpoint names a model that is there")
        yield check_directory(checkpoint)
    elif keep is not None:
        with told_where(keep):
            keep.mkdir(parents=True, exist_ok=True)
        yield keep / f"{shape.value}-{stored.value}"
    else:
        with tempfile.TemporaryDirectory(prefix="edgefed-bench-") as scratch:
            yield Path(scratch) / shape.value
