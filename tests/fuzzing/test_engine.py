"""The fuzzing itself: it is the same for the same seed, and sees what it is there to see."""

from __future__ import annotations

import hashlib
import json
from random import Random

import pytest

from edgefed.errors import MessageError
from tools.fuzzing import engine
from tools.fuzzing.documents import mutated_tree, parse, write
from tools.fuzzing.engine import Target, fuzz
from tools.fuzzing.mutations import Mutation, damaged, json_document, safetensors, toml_document, wrong_numbers

JSON = b'{"a": [1, 2.5, {"b": null}], "c": "text"}'
SAMPLES = {
    damaged: b"some bytes",
    wrong_numbers: JSON,
    json_document: JSON,
    safetensors: (2).to_bytes(8, "little") + b"{}" + bytes(8),
    toml_document: b"a = 1\n# b = 2\n[c]\n",
}


def test_a_document_that_nothing_was_done_to_is_written_as_it_was() -> None:
    assert json.loads(write(parse(JSON))) == json.loads(JSON)


def test_mutating_a_tree_leaves_the_original_alone() -> None:
    tree = parse(JSON)
    for seed in range(200):
        mutated_tree(tree, Random(seed))
    assert tree == parse(JSON)


@pytest.mark.parametrize("mutation", SAMPLES)
def test_the_same_seed_gives_the_same_damage_and_another_gives_other(mutation: Mutation) -> None:
    def digest(seed: int) -> bytes:
        random = Random(seed)
        return hashlib.sha256(b"|".join(mutation([SAMPLES[mutation]], random) for _ in range(100))).digest()

    assert digest(1) == digest(1) != digest(2)


def target(read: object) -> Target:
    return Target("test", read, MessageError, (b"12345678",), (damaged,))  # type: ignore[arg-type]


def test_values_and_the_projects_own_errors_are_counted() -> None:
    def read(payload: bytes) -> None:
        if len(payload) != 8:
            raise MessageError("not eight bytes")

    tally = fuzz(target(read), 200, seed=1)
    assert not tally.defects
    assert tally.inputs == 200 == tally.read + tally.errors["MessageError"]
    assert min(tally.read, tally.errors["MessageError"]) > 20


def test_any_other_exception_is_a_defect_and_the_input_is_kept() -> None:
    tally = fuzz(target(lambda payload: payload.decode()), 200, seed=1)
    assert tally.defects
    with pytest.raises(UnicodeDecodeError):
        tally.defects[0].input.decode()
    assert "UnicodeDecodeError" in tally.defects[0].what


def test_memory_beyond_what_the_input_justifies_is_a_defect() -> None:
    def read(payload: bytes) -> object:
        return bytes(0 if payload == b"12345678" else 4 * 2**20)

    tally = fuzz(target(read), 30, seed=1)
    assert "of memory for" in tally.defects[0].what
    assert tally.peak_bytes >= 4 * 2**20


def test_an_input_that_takes_too_long_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(payload: bytes) -> None:
        while payload != b"12345678":
            pass

    monkeypatch.setattr(engine, "PATIENCE_S", 0.05)
    assert "processor time" in fuzz(target(read), 1, seed=3).defects[0].what


def test_an_error_that_cannot_be_printed_is_a_defect() -> None:
    def read(payload: bytes) -> None:
        if payload != b"12345678":
            raise MessageError("\ud800")

    assert "cannot be written" in fuzz(target(read), 30, seed=1).defects[0].what


def test_a_reader_that_refuses_good_input_shows_nothing() -> None:
    def read(payload: bytes) -> None:
        raise MessageError("no")

    with pytest.raises(ValueError, match="refuses a valid sample"):
        fuzz(target(read), 1, seed=1)
