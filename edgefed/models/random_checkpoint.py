"""A checkpoint of random weights in the exact layout of a T5: what a benchmark needs, with nothing to download.

Names, shapes and configuration are those that transformers gives a model of this layout; the weights are drawn with
the deviations of T5's own initialisation (transformers' `T5PreTrainedModel._init_weights`), so that activations stay
in range at every precision. Blocks of a few megabytes go to the file as they are drawn: the memory needed does not
depend on the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgefed.errors import ModelError
from edgefed.files import temporary_beside
from edgefed.models.layout import ModelLayout

__all__ = ["Stored", "Tensor", "checkpoint_bytes", "layout_tensors", "write_random_checkpoint"]

Stored = Literal["fp32", "bf16"]
"""How the file keeps the weights; FLAN-T5 is published in fp32."""

Weights = npt.NDArray[np.float32]

_STORED_BYTES: dict[Stored, int] = {"fp32": 4, "bf16": 2}
_STORED_NAMES: dict[Stored, tuple[str, str]] = {"fp32": ("F32", "float32"), "bf16": ("BF16", "bfloat16")}
_BLOCK = 1 << 22  # weights that are drawn at a time
_SPARE_BYTES = 64 << 20  # headers, tokenizer, and what a file system needs to stay usable
_SPECIAL = ("<pad>", "</s>", "<unk>")


class Tensor(NamedTuple):
    """One weight of a model: its name, its shape, and the deviation it is drawn with; 0 makes it all ones."""

    name: str
    shape: tuple[int, ...]
    deviation: float


def checkpoint_bytes(layout: ModelLayout, stored: Stored = "fp32") -> int:
    """Returns the bytes of a layout's weights in a file."""
    return layout.parameters * _STORED_BYTES[stored]


def write_random_checkpoint(
    directory: Path,
    layout: ModelLayout,
    *,
    stored: Stored = "fp32",
    seed: int = 0,
    report: Callable[[int, int], None] = lambda _done, _of: None,
) -> None:
    """Writes config.json, model.safetensors and a tokenizer; the directory appears once it is whole.

    The tokenizer has one word for every row of the embedding, so that random token ids are a text that comes back as
    the same ids; like T5's own it ends a text with `</s>`.

    Args:
        directory: to make; its parent exists.
        layout: of the model.
        stored: precision of the file.
        seed: of the weights.
        report: called with bytes written and bytes in all; what it raises leaves nothing behind.

    Raises:
        ModelError: the directory is there already, the disk has no room, or it cannot be written.
    """
    if directory.exists():
        raise ModelError(f"{directory} is there already, and a checkpoint of random weights would replace it")
    temporary = temporary_beside(directory)
    try:
        _check_room(directory.parent, layout, stored)
        temporary.mkdir()
        with (temporary / "model.safetensors").open("wb") as file:
            _write_weights(file, list(layout_tensors(layout)), stored, seed, report)
        _write_json(temporary / "config.json", _config(layout, stored))
        _write_json(temporary / "tokenizer.json", _tokenizer(layout.vocabulary))
        _write_json(temporary / "tokenizer_config.json", _tokenizer_config())
        temporary.rename(directory)
    except OSError as error:
        raise ModelError(f"{directory}: the checkpoint cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def layout_tensors(layout: ModelLayout) -> Iterator[Tensor]:
    """Yields a model's weights as transformers names them, in the order of the network."""
    wide = layout.d_model
    yield Tensor("shared.weight", (layout.vocabulary, wide), 1.0)
    for part, layers in (("encoder", layout.encoder_layers), ("decoder", layout.decoder_layers)):
        for block in range(layers):
            yield from _block(layout, f"{part}.block.{block}", crosses=part == "decoder", first=block == 0)
        yield Tensor(f"{part}.final_layer_norm.weight", (wide,), 0.0)
    if not layout.tied:
        yield Tensor("lm_head.weight", (layout.vocabulary, wide), wide**-0.5)


def _block(layout: ModelLayout, path: str, *, crosses: bool, first: bool) -> Iterator[Tensor]:
    """Yields a block's weights; only the first has the relative positions' bias, which the others share."""
    wide, inner, narrow = layout.d_model, layout.inner, layout.d_ff
    attentions = ("SelfAttention", "EncDecAttention") if crosses else ("SelfAttention",)
    for number, attention in enumerate(attentions):
        layer = f"{path}.layer.{number}"
        yield Tensor(f"{layer}.{attention}.q.weight", (inner, wide), (wide * layout.d_kv) ** -0.5)
        yield Tensor(f"{layer}.{attention}.k.weight", (inner, wide), wide**-0.5)
        yield Tensor(f"{layer}.{attention}.v.weight", (inner, wide), wide**-0.5)
        yield Tensor(f"{layer}.{attention}.o.weight", (wide, inner), inner**-0.5)
        if first and number == 0:
            bias = f"{layer}.{attention}.relative_attention_bias.weight"
            yield Tensor(bias, (layout.buckets, layout.heads), wide**-0.5)
        yield Tensor(f"{layer}.layer_norm.weight", (wide,), 0.0)
    layer = f"{path}.layer.{len(attentions)}"
    for name in ("wi_0", "wi_1") if layout.gated else ("wi",):
        yield Tensor(f"{layer}.DenseReluDense.{name}.weight", (narrow, wide), wide**-0.5)
    yield Tensor(f"{layer}.DenseReluDense.wo.weight", (wide, narrow), narrow**-0.5)
    yield Tensor(f"{layer}.layer_norm.weight", (wide,), 0.0)


def _check_room(parent: Path, layout: ModelLayout, stored: Stored) -> None:
    needed, free = checkpoint_bytes(layout, stored) + _SPARE_BYTES, shutil.disk_usage(parent).free
    if free < needed:
        smaller = ", or store the weights in bf16, which takes half" if stored == "fp32" else ""
        raise ModelError(
            f"a checkpoint of {layout.name} in {stored} needs {needed / 1e9:.1f} GB, and {parent} has {free / 1e9:.1f} "
            f"GB free: make room, take a directory on another disk{smaller}"
        )


def _write_weights(
    file: BinaryIO, tensors: list[Tensor], stored: Stored, seed: int, report: Callable[[int, int], None]
) -> None:
    """Writes a safetensors file: eight bytes of length, a JSON header that names every tensor, the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + _count(tensor) * _STORED_BYTES[stored]
        header[tensor.name] = {
            "dtype": _STORED_NAMES[stored][0],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    done = 0
    report(done, end)
    for number, tensor in enumerate(tensors):
        random = np.random.default_rng((seed, number))
        for start in range(0, _count(tensor), _BLOCK):
            block = _draw(random, min(_BLOCK, _count(tensor) - start), tensor.deviation)
            done += file.write(_encoded(block, stored))
            report(done, end)


def _count(tensor: Tensor) -> int:
    count = 1
    for side in tensor.shape:
        count *= side
    return count


def _draw(random: np.random.Generator, count: int, deviation: float) -> Weights:
    block = np.ones(count, np.float32)
    if deviation:
        random.standard_normal(out=block, dtype=np.float32)
        block *= np.float32(deviation)
    return block


def _encoded(block: Weights, stored: Stored) -> bytes:
    """Returns little-endian bytes; bf16 is the upper half of fp32, rounded to the nearest, to even on a tie."""
    if stored == "fp32":
        return block.astype("<f4", copy=False).tobytes()
    bits = block.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    upper: npt.NDArray[np.uint32] = (bits + np.uint32(0x7FFF) + even) >> np.uint32(16)
    return upper.astype("<u2").tobytes()


def _config(layout: ModelLayout, stored: Stored) -> dict[str, Any]:
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": layout.vocabulary,
        "d_model": layout.d_model,
        "d_kv": layout.d_kv,
        "d_ff": layout.d_ff,
        "num_layers": layout.encoder_layers,
        "num_decoder_layers": layout.decoder_layers,
        "num_heads": layout.heads,
        "relative_attention_num_buckets": layout.buckets,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1 if layout.dropout else 0.0,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu" if layout.gated else "relu",
        "tie_word_embeddings": layout.tied,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "dtype": _STORED_NAMES[stored][1],
    }


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    """Returns tokenizer.json (the format of the tokenizers library): words are `w3`, `w4`, … by their ids."""
    words = {word: number for number, word in enumerate(_SPECIAL)}
    words |= {f"w{number}": number for number in range(len(_SPECIAL), vocabulary)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": word, **flags} for number, word in enumerate(_SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")
