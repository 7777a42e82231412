"""Adapters cut from adapters; tests/federation takes them out of an aggregator's own run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefed.lora.peft_files import read_peft

Run = Callable[..., Any]


def test_the_rank_that_the_user_picks(edgefed: Run, run_directory: Path, tmp_path: Path) -> None:
    done = edgefed("export", run_directory, "--rank", 2, "--output", tmp_path / "new" / "small")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"wrote {tmp_path}/new/small: rank 2 from {run_directory}/adapter, for edgefed/tiny-t5\n"
    small, base_model = read_peft(tmp_path / "new" / "small")
    whole, _ = read_peft(run_directory / "adapter")
    assert base_model == "edgefed/tiny-t5"
    for module, matrix in small.items():
        assert matrix.rank == 2
        np.testing.assert_allclose(matrix.dense(), whole[module].truncated(2).dense(), atol=1e-5)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["small"], "nothing else is left"


def test_all_of_it(edgefed: Run, run_directory: Path, tmp_path: Path) -> None:
    assert edgefed("export", run_directory, "-o", tmp_path / "all").code == 0
    name = "adapter_model.safetensors"
    assert (tmp_path / "all" / name).read_bytes() == (run_directory / "adapter" / name).read_bytes()


def test_an_adapter_is_replaced_only_when_told(edgefed: Run, run_directory: Path, tmp_path: Path) -> None:
    edgefed("export", run_directory, "-o", tmp_path / "out", "--rank", 3)
    done = edgefed("export", run_directory, "-o", tmp_path / "out", "--rank", 1)
    assert (done.code, done.out) == (3, "")
    assert "exists already; --force replaces an adapter" in done.err
    assert {matrix.rank for matrix in read_peft(tmp_path / "out")[0].values()} == {3}
    assert edgefed("export", run_directory, "-o", tmp_path / "out", "--rank", 1, "--force").code == 0
    assert {matrix.rank for matrix in read_peft(tmp_path / "out")[0].values()} == {1}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--rank", 64], 8, "rank 64 is more than the adapter has: it has 4"),
        (["--round", "3"], 8, "holds no states to take a round's adapter from"),
        (["--round", "middle"], 2, "it is best, last, or a number of rounds"),
        (["--rank", -1], 2, "--rank"),
    ],
)
def test_what_is_wrong_is_said(
    edgefed: Run, run_directory: Path, tmp_path: Path, options: list[object], code: int, said: str
) -> None:
    done = edgefed("export", run_directory, "-o", tmp_path / "out", *options)
    assert done.code == code
    assert said in done.err
    assert not (tmp_path / "out").exists()


def test_no_run_at_all(edgefed: Run, tmp_path: Path) -> None:
    done = edgefed("export", tmp_path, "-o", tmp_path / "out")
    assert done.code == 8
    assert "holds no PEFT adapter" in done.err
    assert list(tmp_path.iterdir()) == []


def test_states_without_a_store(edgefed: Run, tmp_path: Path) -> None:
    (tmp_path / "global" / "2").mkdir(parents=True)
    done = edgefed("export", tmp_path, "-o", tmp_path / "out")
    assert done.code == 9
    assert "has no store.sqlite" in done.err
