from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgefed.errors import AdapterError
from edgefed.lora.tensor_file import open_tensors, write_tensors

TENSORS = {
    "wide": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2.0, 65504.0], np.float16),
    "bytes": np.array([[-128, 127]], np.int8),
    "empty": np.zeros((4, 0), np.float32),
    "größe": np.ones((1, 1, 1), np.float32),
}


def container(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def test_the_safetensors_package_reads_what_is_written(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"round": "3"})
    found = load_file(path)
    assert set(found) == set(TENSORS)
    for name, array in TENSORS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_what_the_safetensors_package_writes_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, metadata={"round": "3"})
    file = open_tensors(path)
    assert file.metadata == {"round": "3"}
    for name, array in TENSORS.items():
        assert file.shape(name) == array.shape
        np.testing.assert_array_equal(file.read(name), array)
        file.read(name)[...] = 0  # its own memory: the next reader sees the file
    np.testing.assert_array_equal(file.read("wide"), TENSORS["wide"])


def test_bfloat16_is_widened(tmp_path):
    values = np.array([1.0, -3.140625, 2.0**99], np.float32)  # exact in bfloat16
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    header = {"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    path = tmp_path / "a.safetensors"
    path.write_bytes(container(header, upper.tobytes()))
    found = open_tensors(path).read("x")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


def test_the_same_content_gives_the_same_bytes_in_any_order(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    metadata = {f"key{at}": str(at) for at in range(20)}
    write_tensors(one, TENSORS, metadata)
    write_tensors(other, dict(reversed(TENSORS.items())), dict(reversed(metadata.items())))
    assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cut short"),
        (b"\x00" * 7, "cut short"),
        (struct.pack("<Q", 2**63) + b"{}", "cut short"),
        (container({}, length=10**6), "cut short"),
        (container(b"\xff\xfe"), "malformed"),
        (container(b"{"), "malformed"),
        (container(b"[" * 100_000), "malformed"),
        (container(b'{"a": ' + b"9" * 5000 + b"}"), "malformed"),
        (container([]), "not an object"),
        (container({"__metadata__": {"a": 1}}), "map of strings"),
        (container(b'{"__metadata__": {"a": "\\ud800"}}'), "malformed"),
        (container(b'{"\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'), "malformed"),
        (container({"x": 3}), "dtype, shape and data_offsets"),
        (container({"x": {**GOOD, "more": 1}}, b"\0" * 8), "dtype, shape and data_offsets"),
        (container({"x": {**GOOD, "dtype": "F64"}}, b"\0" * 8), "type 'F64'"),
        (container({"x": {**GOOD, "dtype": ["F32"]}}, b"\0" * 8), "type"),
        (container({"x": {**GOOD, "shape": [-2]}}, b"\0" * 8), "lists of sizes"),
        (container({"x": {**GOOD, "shape": [True, 2]}}, b"\0" * 8), "lists of sizes"),
        (container({"x": {**GOOD, "shape": [2**62, 2**62, 0]}}, b"\0" * 8), "lists of sizes"),
        (container({"x": {"dtype": "F32", "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}}), "too large"),
        (container({"x": {**GOOD, "shape": [3]}}, b"\0" * 8), "size of its shape"),
        (container({"x": {**GOOD, "data_offsets": [8, 0]}}, b"\0" * 8), "size of its shape"),
        (container({"x": GOOD}, b"\0" * 9), "need 8 bytes and the file has 9"),
        (container({"x": GOOD}, b"\0" * 7), "need 8 bytes and the file has 7"),
        (container({"x": GOOD, "y": GOOD}, b"\0" * 16), "overlap"),
        (container({"x": {**GOOD, "data_offsets": [4, 12]}}, b"\0" * 12), "gap"),
        (container(b'{"x": %b, "x": %b}' % ((json.dumps(GOOD).encode(),) * 2), b"\0" * 8), "twice"),
    ],
)
def test_malformed_files_are_refused_in_words(tmp_path, content, words):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=words) as refusal:
        open_tensors(path)
    assert str(path) in str(refusal.value)


def test_a_missing_file_a_directory_and_a_shrunken_file_are_refused(tmp_path):
    with pytest.raises(AdapterError, match="No such file"):
        open_tensors(tmp_path / "none")
    with pytest.raises(AdapterError, match="directory"):
        open_tensors(tmp_path)
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {})
    file = open_tensors(path)
    with pytest.raises(AdapterError, match="no tensor 'other'"):
        file.read("other")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="ends inside"):
        file.read("bytes")
    path.unlink()
    with pytest.raises(AdapterError, match="No such file"):
        file.read("wide")


_ENTRIES = st.dictionaries(
    st.text(max_size=3) | st.just("__metadata__"),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=True),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.fixed_dictionaries(
                {
                    "dtype": st.sampled_from(["F32", "F16", "I8", "BF16", "F64"]) | inner,
                    "shape": st.lists(st.integers(-1, 3), max_size=3) | inner,
                    "data_offsets": st.lists(st.integers(-1, 30), min_size=2, max_size=2) | inner,
                }
            )
        ),
        max_leaves=12,
    ),
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(_ENTRIES, st.binary(max_size=40))
def test_any_header_is_understood_or_refused(tmp_path_factory, header, data):
    path: Path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(container(header, data))
    try:
        file = open_tensors(path)
    except AdapterError:
        return
    for name in file.entries:
        assert file.read(name).shape == file.shape(name)


def test_many_modules_have_room_in_the_header_and_a_header_that_is_only_long_is_not_read(tmp_path):
    path = tmp_path / "tensors"
    module = "decoder.block.23.layer.1.EncDecAttention.q"
    write_tensors(path, {f"{module}.{i}": np.zeros((0,), "f4") for i in range(20_000)}, {})
    assert len(open_tensors(path).entries) == 20_000
    header = b'{"a":[' + b"[]," * 2_000_000 + b"0]}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    tracemalloc.start()
    try:
        with pytest.raises(AdapterError, match="not a safetensors file"):
            open_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
