"""The frozen base model: a T5-like network from safetensors, at the precision that the device affords."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from edgefed.errors import ModelError
from edgefed.models.checkpoint import check_directory
from edgefed.training.options import Quantization
from edgefed.training.worker_memory import give_back

__all__ = ["LoadedModel", "compute_dtype", "load_base", "load_tokenizer", "pick_device"]

_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, StrictDataclassError)
DeviceChoice = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A base model in memory, frozen and in evaluation mode.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer.
        quantization: how its linear layers are kept; embeddings and the output layer are never quantised.
        device: where it is.
    """

    model: Any
    tokenizer: Any
    quantization: Quantization
    device: torch.device


def load_base(
    path: Path, quantization: Quantization = "fp32", device: DeviceChoice = "auto", *, threads: int | None = None
) -> LoadedModel:
    """Load an encoder–decoder model for LoRA.

    Args:
        path: a model directory with safetensors weights and a tokenizer.
        quantization: "fp32", "bf16", or bitsandbytes "int8" or "nf4" (both on CPU too).
        device: "auto" takes CUDA where there is some.
        threads: CPU threads that this process may use; None leaves torch's choice.

    Raises:
        ModelError: the directory is no complete model of this kind, its tokenizer does not match its embedding, or the
            device is not there.
    """
    check_directory(path)
    place = pick_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    # bitsandbytes warns when peft imports it, and once per layer that int8 rounds to fp16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with _quiet():
        tokenizer = load_tokenizer(path)
        model, info = _model(path, quantization, place)
    absent = sorted(info["missing_keys"])
    if absent:
        raise ModelError(f"{path}: the weights lack {', '.join(absent[:3])}{' …' if len(absent) > 3 else ''}")
    _check_tokenizer(path, tokenizer, model)
    model.requires_grad_(False)
    model.eval()
    return LoadedModel(model, tokenizer, quantization, place)


def pick_device(choice: DeviceChoice) -> torch.device:
    """Return where a base model is put; "auto" takes CUDA where there is some.

    Raises:
        ModelError: "cuda" was asked for, and there is none.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' was asked for, and torch finds none; use 'auto' or 'cpu'")
    return torch.device("cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu")


def compute_dtype(quantization: Quantization, device: torch.device) -> torch.dtype:
    """Return what a base of some precision is computed in.

    That is bf16 where the hardware multiplies it; fp32 where it would be emulated; never fp16, in which T5 overflows.
    """
    if quantization == "bf16":
        return torch.bfloat16
    if quantization == "fp32" or device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32


def _model(path: Path, quantization: Quantization, device: torch.device) -> tuple[Any, dict[str, Any]]:
    dtype = compute_dtype(quantization, device)
    arguments: dict[str, Any] = {"dtype": dtype}
    if quantization == "int8":
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    elif quantization == "nf4":
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if quantization in ("int8", "nf4"):
        arguments["device_map"] = {"": device}
    try:
        model, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True, **arguments
        )
    except torch.cuda.OutOfMemoryError:
        raise
    except (*_UNREADABLE, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path} cannot be loaded as an encoder–decoder model in {quantization}: {reason}") from error
    _keep_differentiable(model)
    if quantization in ("int8", "nf4"):
        _let_go_of_file(model)
        return model, info
    return model.to(device), info


def _let_go_of_file(model: Any) -> None:
    """Gives back what loading took: the file's pages, and what the allocator kept of the unquantized weights.

    Weights that stay unquantized are views of the mapped file, and hold with it the pages of all those that were not:
    the whole checkpoint would stay resident beside its quantized copy.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.is_floating_point():
            parameter.data = parameter.data.clone()
    give_back()


def _keep_differentiable(model: Any) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights when a model is evaluated on a CPU with AVX512-BF16.

    Its kernel for that packing has no backward pass, and the weights stay packed: training after an evaluation would
    silently lose the gradient of everything below (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a model directory.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"the tokenizer in {path} cannot be loaded: {reason}") from error


def _check_tokenizer(path: Path, tokenizer: Any, model: Any) -> None:
    rows = model.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"the tokenizer in {path} numbers its entries up to {highest}, and the model's embedding has {rows} rows: "
            "they do not belong together; copy the tokenizer that the model was made with"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers while it loads: a worker's stdout is a protocol, and its stderr is for mistakes."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
