"""evaluate, summarize and export on the shipped model and an adapter made here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from edgefed.lora.low_rank import LowRank
from edgefed.lora.peft_files import read_peft, write_peft
from edgefed.models.checkpoint import linear_shapes, resolve_model

pytestmark = pytest.mark.torch
HELD_OUT = Path(str(resources.files("edgefed.assets"))) / "dialogues" / "held_out.jsonl"


def edgefed(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgefed", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory with an adapter of rank 4 in it."""
    random = np.random.default_rng(0)
    shapes = linear_shapes(resolve_model("edgefed/tiny-t5"), ["q", "v"])
    adapter = {
        module: LowRank(
            random.normal(size=(m, 4)).astype("f4") * np.float32(0.1), random.normal(size=(4, n)).astype("f4")
        ).compressed(4)
        for module, (m, n) in shapes.items()
    }
    directory = tmp_path_factory.mktemp("run")
    write_peft(directory / "adapter", adapter, base_model="edgefed/tiny-t5", rank=None, target_modules=["q", "v"])
    return directory


def test_evaluate_scores_the_base_and_the_adapter(run: Path) -> None:
    arguments = ["--model", "edgefed/tiny-t5", "--data", str(HELD_OUT), "--max-examples", "4", "--threads", "1"]
    done = edgefed("evaluate", *arguments, "--adapter", str(run), "--json")
    assert done.returncode == 0, done.stderr
    base, adapted = json.loads(done.stdout)["results"]
    assert base["model"] == "base model"
    assert adapted["model"].endswith("adapter")
    assert base["examples"] == adapted["examples"] == 4
    assert base["loss"] != adapted["loss"]
    assert 0 <= adapted["rouge_l"] <= 1


def test_summarize_reads_standard_input_and_lines(run: Path, tmp_path: Path) -> None:
    one = edgefed("summarize", "--adapter", str(run), text="Host: A table on Friday?\nGuest: Yes.")
    assert one.returncode == 0, one.stderr
    assert one.stdout.count("\n") == 1
    (tmp_path / "texts.txt").write_text("first text\n\nsecond text\n")
    lines = edgefed("summarize", "-a", str(run / "adapter"), "--lines", "--json", str(tmp_path / "texts.txt"))
    rows = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [row["source"].rpartition(":")[2] for row in rows] == ["1", "3"]
    assert all(isinstance(row["summary"], str) for row in rows)


def test_export_cuts_to_the_rank_that_the_user_picks(run: Path, tmp_path: Path) -> None:
    done = edgefed("export", str(run), "--rank", "2", "--output", str(tmp_path / "small"))
    assert done.returncode == 0, done.stderr
    small, base_model = read_peft(tmp_path / "small")
    whole, _ = read_peft(run / "adapter")
    assert base_model == "edgefed/tiny-t5"
    for module, matrix in small.items():
        assert matrix.rank == 2
        np.testing.assert_allclose(matrix.dense(), whole[module].truncated(2).dense(), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["evaluate", "--model", "edgefed/tiny-t5", "--data", "nowhere.jsonl"], 4, "nowhere.jsonl"),
        (["evaluate", "--data", str(HELD_OUT)], 3, "--model"),
        (
            ["evaluate", "--model", "edgefed/tiny-t5", "--data", str(HELD_OUT), "--source-field", "text"],
            4,
            "dialogue",
        ),
        (["evaluate", "--model", "edgefed/tiny-t5", "--data", str(HELD_OUT), "--adapter", "."], 8, "no PEFT adapter"),
        (["summarize", "--model", "edgefed/tiny-t5"], 4, "empty"),
        (["summarize", "--model", "./no-such-model"], 4, "empty"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], code: int, said: str) -> None:
    done = edgefed(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_export_refuses_more_than_there_is_and_what_is_there(run: Path, tmp_path: Path) -> None:
    more = edgefed("export", str(run), "--rank", "64", "--output", str(tmp_path / "new"))
    assert more.returncode == 8
    assert "it has 4" in more.stderr
    (tmp_path / "there").mkdir()
    there = edgefed("export", str(run), "--output", str(tmp_path / "there"))
    assert there.returncode == 3
    assert "--force" in there.stderr
