"""Adapters as safetensors files: updates on the wire, rank layers of the broadcast, the server's own state.

A module is two tensors, ``<module>.A`` (rank, in_features) and ``<module>.B`` (out_features, rank) with LoRA's
scale folded into B, and for fp16 and int8 their scales ``<module>.A_scale`` and ``<module>.B_scale`` (rank,).
Metadata says ``format = edgefed-lora/1`` and the precision. The same adapter always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefed.errors import AdapterError
from edgefed.lora.adapters import Adapter, adapter_rank
from edgefed.lora.low_rank import LowRank
from edgefed.lora.precision import Precision, decode, encode, with_residual
from edgefed.lora.svd import Float32
from edgefed.lora.tensor_file import TensorFile, open_tensors, write_tensors

__all__ = ["AdapterFile", "join_layers", "open_adapter", "read_adapter", "split_layers", "write_adapter"]

_FORMAT = "edgefed-lora/1"
_STORED_TYPES = {"fp32": "F32", "fp16": "F16", "int8": "I8"}


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter file whose header has been checked; one module is in memory at a time.

    Attributes:
        tensors: the file beneath.
        shapes: module path -> (out_features, in_features).
        ranks: module path -> rank.
        precision: of the stored factors.
    """

    tensors: TensorFile
    shapes: Mapping[str, tuple[int, int]]
    ranks: Mapping[str, int]
    precision: Precision

    @property
    def modules(self) -> tuple[str, ...]:
        """The module paths, sorted."""
        return tuple(self.shapes)

    @property
    def rank(self) -> int:
        """The largest rank of a module; 0 for a file without modules."""
        return max(self.ranks.values(), default=0)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's strings: format, precision and whatever the writer added."""
        return self.tensors.metadata

    def load(self, module: str) -> LowRank:
        """One module, decoded to float32.

        Raises:
            AdapterError: there is no such module, or its values are not finite.
        """
        if module not in self.shapes:
            raise AdapterError(f"{self.tensors.path}: there is no module {module!r}")
        right = decode(self.tensors.read(f"{module}.A"), self._scales(f"{module}.A_scale"))
        left = decode(self.tensors.read(f"{module}.B").T, self._scales(f"{module}.B_scale")).T
        matrix = LowRank(np.ascontiguousarray(left), right)
        matrix.check(f"{self.tensors.path}: module {module!r}")
        return matrix

    def _scales(self, name: str) -> Float32 | None:
        return None if self.precision == "fp32" else self.tensors.read(name)


def write_adapter(
    path: Path,
    adapter: Adapter,
    *,
    precision: Precision,
    metadata: Mapping[str, str] | None = None,
    residual: Adapter | None = None,
) -> dict[str, LowRank]:
    """Writes an adapter atomically, and returns what the rounding lost.

    The caller keeps the returned residual (itself an adapter; write it as fp32) and passes it with the next
    adapter it sends; `edgefed.lora.precision` says why it is a matrix and what of it goes out.

    Args:
        path: replaced if it exists.
        adapter: module path -> matrix; finite.
        precision: of the stored factors.
        metadata: more strings for the header; "format" and "precision" are taken.
        residual: what earlier writes lost; modules that are not in the adapter are ignored.

    Returns:
        module path -> adapter + residual − what a reader will decode, of rank at most twice the module's rank;
        0 of rank 0 for fp32 without a residual.

    Raises:
        AdapterError: a value is not finite, or a residual has another shape than its module.
    """
    tensors: dict[str, NDArray[Any]] = {}
    lost: dict[str, LowRank] = {}
    for module in sorted(adapter):
        matrix = adapter[module]
        matrix.check(f"module {module!r}")
        owed = (residual or {}).get(module, LowRank.zero(matrix.shape))
        sent = with_residual(matrix, owed) if owed.rank else matrix
        encoded = _encoded(module, sent, precision)
        tensors.update(encoded)
        lost[module] = _lost(matrix, owed, sent, _decoded(module, encoded))
    write_tensors(path, tensors, {**(metadata or {}), "format": _FORMAT, "precision": precision})
    return lost


def open_adapter(path: Path) -> AdapterFile:
    """Checks an adapter file's header and returns a reader of its modules.

    Raises:
        AdapterError: the file is unreadable, malformed, or not an adapter of this format.
    """
    tensors = open_tensors(path)
    precision = tensors.metadata.get("precision", "")
    if tensors.metadata.get("format") != _FORMAT or precision not in _STORED_TYPES:
        raise AdapterError(f"{path}: not an edgefed adapter: its metadata does not say {_FORMAT} and a precision")
    modules = sorted(name[:-2] for name in tensors.entries if name.endswith(".A"))
    expected = {".A", ".B"} if precision == "fp32" else {".A", ".B", ".A_scale", ".B_scale"}
    names = {module + part for module in modules for part in expected}
    if names != set(tensors.entries):
        odd = sorted(names ^ set(tensors.entries))[0]
        raise AdapterError(f"{path}: tensor {odd!r} is missing or does not belong to an adapter")
    shapes, ranks = {}, {}
    for module in modules:
        shapes[module], ranks[module] = _module_shape(tensors, module, precision)
    return AdapterFile(tensors, shapes, ranks, precision)  # type: ignore[arg-type]


def read_adapter(path: Path) -> dict[str, LowRank]:
    """The whole adapter, decoded to float32.

    Raises:
        AdapterError: the file is unreadable, malformed, not an adapter, or holds values that are not finite.
    """
    file = open_adapter(path)
    return {module: file.load(module) for module in file.modules}


def split_layers(
    adapter: Adapter, boundaries: Sequence[tuple[int, int]], directory: Path, precision: Precision
) -> list[Path]:
    """Writes an adapter cut along its rank, one file per layer, so that a device may take a prefix.

    Args:
        adapter: module path -> matrix. A module of lower rank than a boundary is shorter or empty in that layer.
        boundaries: (low, high) of each layer, from 0 on without gaps, up to at least the adapter's rank.
        directory: must exist; files are named ``layer-<low>-<high>.safetensors``.
        precision: of the stored factors. Layers decode to the same bits as the uncut file does.

    Returns:
        The files' paths in the order of the boundaries.

    Raises:
        AdapterError: the boundaries have gaps or end below the adapter's rank, or a value is not finite.
    """
    ends = [0, *(high for _, high in boundaries)]
    for (low, high), start in zip(boundaries, ends, strict=False):
        if low != start or high <= low:
            raise AdapterError(f"rank layers must follow each other from 0 on; found {list(boundaries)}")
    if ends[-1] < adapter_rank(adapter):
        raise AdapterError(f"the rank layers end at {ends[-1]} and the adapter has rank {adapter_rank(adapter)}")
    paths = []
    for low, high in boundaries:
        path = directory / f"layer-{low:04d}-{high:04d}.safetensors"
        layer = {module: matrix.sliced(low, high) for module, matrix in adapter.items()}
        write_adapter(path, layer, precision=precision, metadata={"low": str(low), "high": str(high)})
        paths.append(path)
    return paths


def join_layers(paths: Sequence[Path]) -> dict[str, LowRank]:
    """The adapter whose layers these files are, or its prefix if only the first layers are given.

    Args:
        paths: layers of one adapter, in any order, from 0 on without gaps.

    Raises:
        AdapterError: a file is malformed or not a layer, a layer is missing, or the modules differ.
    """
    files = [open_adapter(path) for path in paths]
    layers = sorted(((_layer_bounds(file), file) for file in files), key=lambda layer: layer[0])
    at = 0
    for (low, high), file in layers:
        if low != at:
            raise AdapterError(f"{file.tensors.path}: the layer starts at rank {low} where {at} is needed")
        if file.shapes != layers[0][1].shapes:
            raise AdapterError(f"{file.tensors.path}: other modules or shapes than in the first layer")
        at = high
    modules = layers[0][1].modules if layers else ()
    return {module: LowRank.stack([file.load(module) for _, file in layers]) for module in modules}


def _encoded(module: str, matrix: LowRank, precision: Precision) -> dict[str, NDArray[Any]]:
    right, right_scales = encode(matrix.right, precision)
    left, left_scales = encode(np.ascontiguousarray(matrix.left.T), precision)
    tensors = {f"{module}.A": right, f"{module}.B": left.T}
    if right_scales is not None and left_scales is not None:
        tensors |= {f"{module}.A_scale": right_scales, f"{module}.B_scale": left_scales}
    return tensors


def _decoded(module: str, tensors: Mapping[str, NDArray[Any]]) -> LowRank:
    right = decode(tensors[f"{module}.A"], tensors.get(f"{module}.A_scale"))
    return LowRank(decode(tensors[f"{module}.B"].T, tensors.get(f"{module}.B_scale")).T, right)


def _lost(matrix: LowRank, owed: LowRank, sent: LowRank, decoded: LowRank) -> LowRank:
    """What is still owed, summed from small differences: whole matrices would cancel to mere rounding."""
    parts = [_difference(sent, decoded)]
    if owed.rank:
        parts += [owed, _difference(matrix, sent)]
    return LowRank.stack(parts).compressed(2 * matrix.rank)


def _difference(one: LowRank, other: LowRank) -> LowRank:
    """One − other for two values in nearly the same basis: (B − B')·A + B'·(A − A')."""
    return LowRank(
        np.concatenate([one.left - other.left, other.left], axis=1),
        np.concatenate([one.right, one.right - other.right]),
    )


def _module_shape(tensors: TensorFile, module: str, precision: str) -> tuple[tuple[int, int], int]:
    """((out_features, in_features), rank), after checking that the module's tensors agree."""
    right, left = tensors.shape(f"{module}.A"), tensors.shape(f"{module}.B")
    if len(right) != 2 or len(left) != 2 or left[1] != right[0]:
        raise AdapterError(f"{tensors.path}: module {module!r} has A of shape {right} and B of shape {left}")
    kinds = {f"{module}.A": _STORED_TYPES[precision], f"{module}.B": _STORED_TYPES[precision]}
    if precision != "fp32":
        kinds |= {f"{module}.A_scale": "F32", f"{module}.B_scale": "F32"}
    for name, dtype in kinds.items():
        if tensors.dtype(name) != dtype:
            raise AdapterError(f"{tensors.path}: {name!r} is {tensors.dtype(name)}; {precision} needs {dtype}")
        if name.endswith("_scale") and tensors.shape(name) != (right[0],):
            raise AdapterError(f"{tensors.path}: {name!r} has shape {tensors.shape(name)}, not ({right[0]},)")
    return (left[0], right[1]), right[0]


def _layer_bounds(file: AdapterFile) -> tuple[int, int]:
    try:
        low, high = int(file.metadata["low"]), int(file.metadata["high"])
    except (KeyError, ValueError) as error:
        raise AdapterError(f"{file.tensors.path}: not a rank layer: its metadata names no low and high") from error
    if not 0 <= low < high or file.rank > high - low:
        raise AdapterError(f"{file.tensors.path}: rank {file.rank} does not fit the layer [{low}, {high})")
    return low, high
