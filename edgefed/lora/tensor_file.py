"""safetensors files, written byte for byte the same every time and read as if an enemy had sent them.

The format is 8 bytes of little-endian header length, a JSON header, and the raw tensors
(https://github.com/huggingface/safetensors). It is implemented here because the safetensors package writes its
metadata in random order, so that equal adapters would have unequal hashes, and cannot give bfloat16 to numpy.
The tests read and write every kind of file with that package as well.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefed.errors import AdapterError
from edgefed.files import replace_file

__all__ = ["TensorFile", "open_tensors", "write_tensors"]

_MAX_HEADER_BYTES = 4 * 2**20
"""Some 40,000 tensors. Whoever sends a header of brackets makes Python take 24 times as much memory for a moment."""
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
}
_NAMES: Mapping[np.dtype[Any], str] = {np.dtype("float32"): "F32", np.dtype("float16"): "F16", np.dtype("int8"): "I8"}


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file whose header has been checked; tensors are read one at a time.

    Attributes:
        path: the file.
        metadata: the header's free strings.
        entries: tensor name -> where it lies.
    """

    path: Path
    metadata: Mapping[str, str]
    entries: Mapping[str, _Entry]

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it.

        Raises:
            AdapterError: there is no such tensor.
        """
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """The tensor's type in safetensors' words: F32, F16, BF16 or I8."""
        return self._entry(name).dtype

    def read(self, name: str) -> NDArray[Any]:
        """The tensor as a float32, float16 or int8 array of its own memory (bfloat16 becomes float32).

        Raises:
            AdapterError: there is no such tensor, or the file is no longer what it was when it was opened.
        """
        entry = self._entry(name)
        dtype = _DTYPES[entry.dtype]
        flat = np.empty(prod(entry.shape), dtype)
        try:
            with self.path.open("rb") as file:
                file.seek(entry.offset)
                read_bytes = file.readinto(flat.view(np.uint8).data)
        except OSError as error:
            raise AdapterError(f"{self.path}: {error.strerror}") from error
        if read_bytes != flat.nbytes:
            raise AdapterError(f"{self.path}: the file ends inside tensor {name!r}")
        if entry.dtype == "BF16":  # the upper half of a float32
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        return flat.reshape(entry.shape)

    def _entry(self, name: str) -> _Entry:
        if name not in self.entries:
            raise AdapterError(f"{self.path}: there is no tensor {name!r}")
        return self.entries[name]


def open_tensors(path: Path) -> TensorFile:
    """Reads and checks the header of a safetensors file.

    Raises:
        AdapterError: the file cannot be read or is malformed in any way: sizes that do not add up, tensors that
            overlap or leave gaps, names twice, types other than F32, F16, BF16 and I8.
    """
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else file_bytes
            if header_bytes > min(file_bytes - 8, _MAX_HEADER_BYTES):
                raise AdapterError(f"{path}: not a safetensors file, or cut short ({file_bytes} bytes)")
            raw = file.read(header_bytes)
    except OSError as error:
        raise AdapterError(f"{path}: {error.strerror}") from error
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique)
        metadata = _metadata(header)
        entries = {name: _parsed(name, entry) for name, entry in header.items()}
        _check_layout(entries, file_bytes - 8 - header_bytes)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: malformed safetensors header: {error}") from error
    start = 8 + header_bytes
    placed = {name: _Entry(dtype, shape, start + begin) for name, (dtype, shape, begin, _) in entries.items()}
    return TensorFile(path, metadata, placed)


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file atomically; the same content gives the same bytes.

    Args:
        path: replaced if it exists.
        tensors: name -> float32, float16 or int8 array, in any order.
        metadata: free strings for the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    # Wide types first, as the safetensors package does, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in names:
        array = tensors[name]
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    parts = [struct.pack("<Q", len(encoded)), encoded]
    replace_file(path, parts + [np.ascontiguousarray(tensors[name]).tobytes() for name in names])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _metadata(header: Any) -> dict[str, str]:
    """Takes the metadata out of the header."""
    if not isinstance(header, dict):
        raise ValueError("it is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not a map of strings")
    "".join([*metadata, *metadata.values()]).encode()
    return metadata


def _parsed(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one tensor, with a size that agrees with its shape."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not dtype, shape and data_offsets")
    name.encode()  # a lone surrogate from a \\ud800 escape could not be written or printed later
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"tensor {name!r} has type {dtype!r}; allowed are {', '.join(_DTYPES)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise ValueError(f"tensor {name!r} has a shape or offsets that are not lists of sizes")
    if prod(size or 1 for size in shape) >= 2**48:  # numpy counts so, even where a size of 0 makes it empty
        raise ValueError(f"tensor {name!r} of shape {shape} is too large")
    if offsets[1] - offsets[0] != prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"tensor {name!r} of shape {shape} does not have the size of its shape")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _naturals(values: Any) -> bool:
    """A list of integers that can be sizes: bool is an int to Python, and 2**63 would overflow numpy."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _check_layout(entries: Mapping[str, tuple[str, tuple[int, ...], int, int]], data_bytes: int) -> None:
    at = 0
    for begin, end in sorted((begin, end) for _, _, begin, end in entries.values()):
        if begin != at:
            raise ValueError("tensors overlap or leave a gap")
        at = end
    if at != data_bytes:
        raise ValueError(f"the tensors need {at} bytes and the file has {data_bytes}")
