"""Adapters as PEFT directories: adapter_config.json and adapter_model.safetensors, as peft itself writes them.

ΔW = (α/r)·B·A there. Written directories have α = r, so the factors are ours unchanged; read ones have whatever
scale their config says, which is folded into B.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from edgefed.errors import AdapterError
from edgefed.files import replace_file, sync_directory, temporary_beside
from edgefed.lora.adapters import Adapter, adapter_rank
from edgefed.lora.low_rank import LowRank
from edgefed.lora.tensor_file import TensorFile, open_tensors, write_tensors

__all__ = ["read_peft", "write_peft"]

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MOST = float(np.finfo(np.float32).max)

# Settings under which ΔW is not (α/r)·B·A, or is not all that was trained; each with the value that is understood.
_PLAIN: Mapping[str, Any] = {
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "lora_bias": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "velora_config": None,
    "monteclora_config": None,
    "kasa_config": None,
}


def write_peft(
    directory: Path,
    adapter: Adapter,
    *,
    base_model: str,
    rank: int | None = None,
    target_modules: Sequence[str] | None = None,
) -> None:
    """Writes a directory that ``PeftModel.from_pretrained`` loads.

    It appears whole: a reader sees the old directory, the new one, or, for the moment between two renames, none.

    Args:
        directory: replaced if it exists; its parent must exist.
        adapter: module path -> matrix. A module of rank 0 is written as zeros of rank 1, which peft needs.
        base_model: name or path that the config names as the base.
        rank: the best approximation of at most this rank, at least 1; None writes the adapter as it is.
        target_modules: names as peft matches them ("q", "v"); None names every module by its whole path.

    Raises:
        AdapterError: the adapter is empty, a value is not finite, or the rank is below 1.
    """
    if not adapter or (rank is not None and rank < 1):
        raise AdapterError(
            f"a PEFT directory needs modules and a rank of at least 1; found {len(adapter)} modules, rank {rank}"
        )
    written: dict[str, LowRank] = {}
    for module in sorted(adapter):
        matrix = adapter[module]
        matrix.check(f"module {module!r}")
        fitting = matrix if rank is None or matrix.rank <= rank else matrix.compressed(rank)
        written[module] = fitting.completed(1 if rank is None else min(rank, max(1, matrix.rank)), seed=0)
    config = _config(written, base_model, target_modules or list(written))
    tensors = {}
    for module, matrix in written.items():
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = matrix.right
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = matrix.left
    fresh = temporary_beside(directory)
    fresh.mkdir()
    try:
        write_tensors(fresh / _WEIGHTS, tensors, {"format": "pt"})
        replace_file(fresh / _CONFIG, [json.dumps(config, indent=2, sort_keys=True).encode(), b"\n"])
        _swap(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_peft(directory: Path) -> tuple[dict[str, LowRank], str]:
    """Any LoRA directory that peft wrote: α/r or α/√r scaling, rank and alpha patterns; float32, float16, bfloat16.

    Returns:
        module path -> ΔW with the scale folded in, and the name of the base model.

    Raises:
        AdapterError: a file is missing or malformed, or the directory holds something that is not plain LoRA on
            linear modules (another PEFT method, DoRA, trained biases or embeddings): the message says what.
    """
    config = _read_config(directory / _CONFIG)
    path = directory / _WEIGHTS
    if not path.exists() and (directory / "adapter_model.bin").exists():
        raise AdapterError(f"{directory}: the weights are a pickle; save them again with safe_serialization=True")
    tensors = open_tensors(path)
    adapter: dict[str, LowRank] = {}
    for name in sorted(tensors.entries):
        found = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if found is None:
            raise AdapterError(f"{path}: tensor {name!r} is not a LoRA factor of a linear module")
        if found[2] == "A":
            adapter[found[1]] = _folded(tensors, found[1], config)
        elif f"{_PREFIX}{found[1]}.lora_A.weight" not in tensors:
            raise AdapterError(f"{path}: {name!r} has no lora_A beside it")
    if not adapter:
        raise AdapterError(f"{path}: there is no LoRA factor in it")
    return adapter, str(config.get("base_model_name_or_path") or "")


def _config(adapter: Adapter, base_model: str, target_modules: Sequence[str]) -> dict[str, Any]:
    most = adapter_rank(adapter)
    others = {module: matrix.rank for module, matrix in adapter.items() if matrix.rank != most}
    # patterns are regular expressions matched at the end of the module's path
    pattern = {f"^{re.escape(module)}": own for module, own in others.items()}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(target_modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _swap(fresh: Path, directory: Path) -> None:
    """Puts the fresh directory in the place of the old one."""
    old = temporary_beside(directory)
    if directory.exists():
        directory.rename(old)
    fresh.rename(directory)
    sync_directory(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise AdapterError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else config
        raise AdapterError(f"{path}: peft_type is {found!r}; only LORA directories can be read")
    for key, plain in _PLAIN.items():
        if key in config and config[key] != plain and config[key]:
            raise AdapterError(f"{path}: {key} is {config[key]!r}; only plain LoRA ({key} = {plain!r}) can be read")
    return config


def _folded(tensors: TensorFile, module: str, config: Mapping[str, Any]) -> LowRank:
    """One module with its scale folded into left."""
    right = tensors.read(f"{_PREFIX}{module}.lora_A.weight").astype(np.float32)
    left = tensors.read(f"{_PREFIX}{module}.lora_B.weight").astype(np.float32)
    rank = _by_pattern(config, "rank_pattern", "r", module)
    alpha = _by_pattern(config, "alpha_pattern", "lora_alpha", module)
    if right.ndim != 2 or right.shape[0] != rank:
        raise AdapterError(
            f"{tensors.path}: module {module!r} has factors of shape {right.shape}; its config says rank {rank}"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # the check that follows refuses what comes of it
        matrix = LowRank(left, right).scaled(alpha / (sqrt(rank) if config.get("use_rslora") else rank))
    matrix.check(f"{tensors.path}: module {module!r}")
    return matrix


def _by_pattern(config: Mapping[str, Any], patterns: str, default: str, module: str) -> float:
    """The value of the first pattern that matches the module, as peft's get_pattern_key picks it."""
    value = config.get(default)
    own_values = config.get(patterns) or {}
    if not isinstance(own_values, dict):
        raise AdapterError(f"{patterns} is {own_values!r:.80}; a map of module patterns to numbers is needed")
    for pattern, own in own_values.items():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except (re.error, OverflowError, RecursionError) as error:
            raise AdapterError(f"{patterns} has {pattern!r}, which is not a regular expression") from error
        if matches:
            value = own
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST:
        raise AdapterError(f"{default} of module {module!r} is {value!r:.80}; a number over 0 is needed")
    return float(value)
