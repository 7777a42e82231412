"""Base models as directories: which one it is, and what shapes its matrices have.

Needs no tensor library, so that the supervisor and the aggregator can ask: a safetensors file begins with eight bytes
of length and a JSON header that names every tensor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgefed.errors import ModelError

__all__ = [
    "check_directory",
    "fingerprint",
    "linear_shapes",
    "read_config",
    "tensor_shapes",
    "weight_files",
]

_TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_VOLATILE_KEYS = frozenset({"transformers_version", "_name_or_path", "dtype", "torch_dtype"})
_EMBEDDINGS = frozenset({"shared", "embed_tokens", "relative_attention_bias"})
_LONGEST_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


def check_directory(directory: Path) -> Path:
    """Return `directory` if it holds a config, safetensors weights and a tokenizer.

    Raises:
        ModelError: it is not there, or names the first thing that it lacks.
    """
    if not directory.is_dir():
        raise ModelError(f"there is no model directory {str(directory)!r}")
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} has no config.json; it is not a model in the Hugging Face layout")
    weight_files(directory)
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(f"{directory} has no tokenizer ({' or '.join(_TOKENIZER_FILES)}); copy the model's own there")
    return directory


def read_config(directory: Path) -> dict[str, Any]:
    """Return what config.json says.

    Raises:
        ModelError: it is missing or is not a JSON object.
    """
    return _json_object(directory / "config.json")


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model, sorted; several where an index names shards.

    Raises:
        ModelError: there is none, or a shard is missing.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = _json_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ModelError(f"{index} does not say in which file each tensor is")
        files = [directory / name for name in sorted(set(shards.values()))]
    else:
        files = [directory / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if not files or missing:
        pickled = sorted(p.name for p in directory.glob("*.bin"))
        hint = f"; {pickled[0]} is pickle, which edgefed does not load: convert it to safetensors" if pickled else ""
        raise ModelError(f"{directory} has no weights: {', '.join(missing) or index.name} is missing{hint}")
    return files


def fingerprint(directory: Path) -> str:
    """Return a sha256 in hexadecimal over what makes two base models the same: weights, configuration, tokenizer.

    Keys of config.json that depend on who saved the model (versions, paths, default data type) do not count.

    Raises:
        ModelError: a file is missing or unreadable.
    """
    check_directory(directory)
    config = {k: v for k, v in _json_object(directory / "config.json").items() if k not in _VOLATILE_KEYS}
    tokenizer = next(directory / name for name in _TOKENIZER_FILES if (directory / name).is_file())
    whole = hashlib.sha256()
    for file_hash in sorted(_file_sha256(file) for file in weight_files(directory)):
        whole.update(file_hash)
    whole.update(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    whole.update(_file_sha256(tokenizer))
    return whole.hexdigest()


def linear_shapes(directory: Path, target_modules: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return {module path: (out_features, in_features)} of the linear layers that LoRA is to change, sorted by path.

    Args:
        directory: a model directory.
        target_modules: last components of module paths, such as ``["q", "v"]``.

    Raises:
        ModelError: a name matches no matrix of the model; lists the names that exist.
    """
    matrices: dict[str, tuple[int, int]] = {}
    for file in weight_files(directory):
        for tensor, shape in tensor_shapes(file).items():
            module, _, kind = tensor.rpartition(".")
            if kind == "weight" and len(shape) == 2 and _last(module) not in _EMBEDDINGS:
                matrices[module] = (shape[0], shape[1])
    existing = sorted({_last(module) for module in matrices})
    unknown = [name for name in target_modules if name not in existing]
    if unknown or not target_modules:
        wrong = ", ".join(map(repr, unknown)) or "an empty list"
        raise ModelError(f"target_modules names {wrong}; the linear layers of {directory} are {', '.join(existing)}")
    return {m: matrices[m] for m in sorted(matrices) if _last(m) in target_modules}


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor in a safetensors file, without reading the tensors.

    Raises:
        ModelError: it cannot be read, or is not such a file.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER_BYTES, file.stat().st_size - 8):
                raise ModelError(
                    f"{file} is not a safetensors file, or is cut off: its header cannot be {length} bytes"
                )
            header = json.loads(stream.read(length))
        return {name: list(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} is not a safetensors file: its header does not list tensors") from error


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} does not hold a JSON object")
    return value


def _file_sha256(file: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    return digest.digest()
