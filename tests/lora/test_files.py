from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgefed.errors import AdapterError
from edgefed.lora.files import join_layers, open_adapter, read_adapter, split_layers, write_adapter
from edgefed.lora.low_rank import LowRank

SHAPES = {"encoder.q": (24, 32), "decoder.wo": (32, 48)}
PRECISIONS = ("fp32", "fp16", "int8")


def draw(seed: int, rank: int, size: float = 1e-3) -> dict[str, LowRank]:
    rng = np.random.default_rng(seed)
    return {
        module: LowRank(
            (size * rng.standard_normal((m, rank))).astype(np.float32),
            rng.standard_normal((rank, n)).astype(np.float32),
        )
        for module, (m, n) in SHAPES.items()
    }


def distance(one: LowRank, other: np.ndarray) -> float:
    return float(np.linalg.norm(one.dense().astype(np.float64) - other) / np.linalg.norm(other))


@pytest.mark.parametrize(("precision", "error"), [("fp32", 0.0), ("fp16", 5e-4), ("int8", 2e-2)])
@pytest.mark.parametrize("rank", [0, 1, 8])
def test_what_is_written_is_read(tmp_path, precision, error, rank):
    adapter = draw(0, rank)
    path = tmp_path / "update.safetensors"
    write_adapter(path, adapter, precision=precision, metadata={"round": "7"})
    file = open_adapter(path)
    assert (file.modules, file.rank, file.precision) == (("decoder.wo", "encoder.q"), rank, precision)
    assert file.shapes == SHAPES
    assert file.metadata["round"] == "7"
    found = read_adapter(path)
    for module, matrix in adapter.items():
        assert (found[module].shape, found[module].rank) == (matrix.shape, rank)
        np.testing.assert_array_equal(file.load(module).left, found[module].left)
        if rank:
            assert distance(found[module], matrix.dense()) <= error


def test_reduced_precision_is_that_much_smaller(tmp_path):
    sizes_bytes = []
    for precision in PRECISIONS:
        path = tmp_path / precision
        write_adapter(path, draw(0, 64), precision=precision)
        sizes_bytes.append(path.stat().st_size)
    assert sizes_bytes[1] < 0.56 * sizes_bytes[0]
    assert sizes_bytes[2] < 0.32 * sizes_bytes[0]


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    adapter = draw(0, 4)
    for precision in PRECISIONS:
        write_adapter(tmp_path / "one", adapter, precision=precision, metadata={"a": "1", "b": "2"})
        flipped = dict(reversed(adapter.items()))
        write_adapter(tmp_path / "other", flipped, precision=precision, metadata={"b": "2", "a": "1"})
        assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_error_feedback_sends_in_the_end_all_there_was(tmp_path, precision):
    """The mean of what was sent over T rounds is off by 1/T of one round's error, though each round trains on and is
    sent in a new basis.
    """
    path = tmp_path / "update.safetensors"
    rng = np.random.default_rng(1)
    rounds, residual = 24, None
    sent = {module: np.zeros(shape) for module, shape in SHAPES.items()}
    meant = {module: np.zeros(shape) for module, shape in SHAPES.items()}
    current = draw(0, 4)
    without = 0.0
    for _ in range(rounds):
        rotation = np.linalg.qr(rng.standard_normal((4, 4)))[0].astype(np.float32)
        current = {
            module: LowRank(
                (matrix.left + 3e-5 * rng.standard_normal(matrix.left.shape).astype(np.float32)) @ rotation,
                rotation.T @ matrix.right,
            )
            for module, matrix in current.items()
        }
        write_adapter(path, current, precision=precision)
        without += distance(read_adapter(path)["encoder.q"], current["encoder.q"].dense())
        residual = write_adapter(path, current, precision=precision, residual=residual)
        found = read_adapter(path)
        for module in SHAPES:
            assert residual[module].rank <= 8
            sent[module] += found[module].dense()
            meant[module] += current[module].dense()
    one_round = without / rounds
    for module in SHAPES:
        off = np.linalg.norm(sent[module] - meant[module]) / np.linalg.norm(meant[module])
        assert off < 3 * one_round / rounds


def test_the_residual_is_exactly_what_a_reader_misses(tmp_path):
    path, adapter, owed = tmp_path / "a", draw(0, 3), draw(1, 2, 1e-5)
    lost = write_adapter(path, adapter, precision="int8", residual=owed)
    found = read_adapter(path)
    for module in SHAPES:
        missing = adapter[module].dense() + owed[module].dense() - found[module].dense().astype(np.float64)
        # what does not fit rank 6 is dropped
        tail = np.sqrt(np.sum(np.linalg.svd(missing, compute_uv=False)[6:] ** 2))
        assert np.linalg.norm(lost[module].dense() - missing) <= tail + 1e-6 * np.linalg.norm(adapter[module].dense())
    exact = write_adapter(path, adapter, precision="fp32")
    assert all(matrix.rank == 0 for matrix in exact.values())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_join_to_what_the_uncut_file_holds(tmp_path, precision):
    adapter = draw(0, 16)
    bounds = [(0, 2), (2, 4), (4, 16)]
    paths = split_layers(adapter, bounds, tmp_path, precision)
    write_adapter(tmp_path / "whole", adapter, precision=precision)
    whole = read_adapter(tmp_path / "whole")
    joined = join_layers(list(reversed(paths)))
    prefix = join_layers(paths[:2])
    for module in SHAPES:
        np.testing.assert_array_equal(joined[module].left, whole[module].left)
        np.testing.assert_array_equal(joined[module].right, whole[module].right)
        np.testing.assert_array_equal(prefix[module].left, whole[module].left[:, :4])
    assert [open_adapter(path).rank for path in paths] == [2, 2, 12]


def test_layers_of_modules_of_different_rank(tmp_path):
    adapter = {"a": draw(0, 3)["encoder.q"], "b": draw(0, 9)["decoder.wo"]}
    joined = join_layers(split_layers(adapter, [(0, 4), (4, 12)], tmp_path, "fp32"))
    assert {module: matrix.rank for module, matrix in joined.items()} == {"a": 3, "b": 9}


def test_layers_that_do_not_fit_together_are_refused(tmp_path):
    adapter = draw(0, 8)
    for bounds, words in (
        ([(0, 4)], "end at 4 and the adapter has rank 8"),
        ([(1, 8)], "follow each other"),
        ([(0, 4), (5, 8)], "follow each other"),
        ([(0, 4), (4, 4), (4, 8)], "follow each other"),
    ):
        with pytest.raises(AdapterError, match=words):
            split_layers(adapter, bounds, tmp_path, "fp32")
    paths = split_layers(adapter, [(0, 2), (2, 4), (4, 8)], tmp_path, "fp32")
    with pytest.raises(AdapterError, match="starts at rank 4 where 2 is needed"):
        join_layers([paths[0], paths[2]])
    with pytest.raises(AdapterError, match="starts at rank 0 where 2 is needed"):
        join_layers([paths[0], paths[0]])
    write_adapter(tmp_path / "plain", adapter, precision="fp32")
    with pytest.raises(AdapterError, match="not a rank layer"):
        join_layers([tmp_path / "plain"])
    write_adapter(tmp_path / "lying", adapter, precision="fp32", metadata={"low": "0", "high": "4"})
    with pytest.raises(AdapterError, match="rank 8 does not fit"):
        join_layers([tmp_path / "lying"])
    write_adapter(
        tmp_path / "other", {"x": adapter["encoder.q"]}, precision="fp32", metadata={"low": "2", "high": "10"}
    )
    with pytest.raises(AdapterError, match="other modules"):
        join_layers([paths[0], tmp_path / "other"])
    assert join_layers([]) == {}


def test_values_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    adapter = draw(0, 2)
    adapter["encoder.q"].left[3, 1] = np.nan
    path = tmp_path / "a"
    with pytest.raises(AdapterError, match=r"'encoder.q': 1 of 48 entries of left \(B\)"):
        write_adapter(path, adapter, precision="fp16")
    assert not path.exists()
    adapter["encoder.q"].left[3, 1] = 0
    for scale in (np.nan, np.inf, 3e38):
        write_adapter(path, adapter, precision="int8")
        tensors = load_file(path)
        tensors["encoder.q.B_scale"][1] = scale
        save_file(tensors, path, metadata={"format": "edgefed-lora/1", "precision": "int8"})
        with pytest.raises(AdapterError, match="NaN or infinite"):
            read_adapter(path)


def _tampered(tensors: dict[str, np.ndarray], change: str) -> dict[str, np.ndarray]:
    result = dict(tensors)
    if change == "no B":
        del result["encoder.q.B"]
    elif change == "extra":
        result["encoder.q.C"] = np.ones(3, np.float32)
    elif change == "no scale":
        del result["encoder.q.A_scale"]
    elif change == "other rank":
        result["encoder.q.B"] = np.zeros((24, 5), np.int8)
    elif change == "one axis":
        result["encoder.q.A"] = np.zeros(4, np.int8)
    elif change == "short scale":
        result["encoder.q.A_scale"] = np.ones(3, np.float32)
    else:
        result["encoder.q.A"] = np.zeros((4, 32), np.float32)
    return result


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no B", "'encoder.q.B' is missing"),
        ("extra", "'encoder.q.C' is missing or does not belong"),
        ("no scale", "'encoder.q.A_scale' is missing"),
        ("other rank", "A of shape .* and B of shape"),
        ("one axis", "A of shape"),
        ("short scale", "has shape"),
        ("wrong type", "int8 needs I8"),
    ],
)
def test_files_that_are_no_adapters_are_refused(tmp_path, change, words):
    path = tmp_path / "a"
    write_adapter(path, draw(0, 4), precision="int8")
    save_file(_tampered(load_file(path), change), path, metadata={"format": "edgefed-lora/1", "precision": "int8"})
    with pytest.raises(AdapterError, match=words):
        open_adapter(path)


def test_files_of_another_format_are_refused(tmp_path):
    path = tmp_path / "a"
    for metadata in (
        None,
        {"format": "pt"},
        {"format": "edgefed-lora/1"},
        {"format": "edgefed-lora/1", "precision": "x"},
    ):
        save_file({"x.A": np.ones((1, 1), np.float32)}, path, metadata=metadata)
        with pytest.raises(AdapterError, match="not an edgefed adapter"):
            open_adapter(path)
    write_adapter(path, draw(0, 1), precision="fp32")
    with pytest.raises(AdapterError, match="no module 'x'"):
        open_adapter(path).load("x")


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("valid")
    contents = {}
    for precision in PRECISIONS:
        write_adapter(directory / precision, draw(0, 2), precision=precision)
        contents[precision] = (directory / precision).read_bytes()
    return contents


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(PRECISIONS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    st.floats(0, 1),
    st.binary(max_size=12),
    st.booleans(),
)
def test_damaged_files_give_adapter_errors_and_nothing_else(
    valid, tmp_path_factory, precision, flips, kept, tail, whole
):
    content = bytearray(valid[precision])
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    for place, mask in flips:  # mostly in the header, where damage has a meaning
        content[int(place * (header_bytes + 20))] ^= mask
    damaged = bytes(content if whole else content[: int(kept * len(content))]) + tail
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        adapter = read_adapter(path)
    except AdapterError:
        return
    for matrix in adapter.values():
        matrix.check("read")
    join_path = [path]
    with pytest.raises(AdapterError):
        join_layers(join_path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_adapter_errors(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(content)
    with pytest.raises(AdapterError):
        read_adapter(path)


def test_every_truncation_is_refused(valid, tmp_path):
    path = tmp_path / "cut"
    content = valid["int8"]
    for size in itertools.chain(range(0, len(content), 7), range(len(content) - 9, len(content))):
        path.write_bytes(content[:size])
        with pytest.raises(AdapterError):
            read_adapter(path)
