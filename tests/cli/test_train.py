from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefed.lora.peft_files import read_peft

pytestmark = pytest.mark.torch
Run = Callable[..., Any]

FEDERATION = """\
fleet = "test"
rounds = 3
seed = 5
[model]
name = "edgefed/tiny-t5"
[task]
max_source_tokens = 64
max_target_tokens = 16
[method]
aggregation = "{aggregation}"
ranks = [2, 4]
alpha = 8.0
[training]
local_steps = 2
batch_size = 4
learning_rate = 1e-2
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "federation.toml"
    path.write_text(FEDERATION.format(aggregation="delta"))
    return path


@pytest.fixture
def data(tmp_path: Path, held_out: Path) -> Path:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(held_out.read_text(encoding="utf-8").splitlines(keepends=True)[:12]))
    return path


def test_an_adapter_comes_out_that_has_learned(edgefed: Run, config: Path, data: Path, tmp_path: Path) -> None:
    done = edgefed("train", "-c", config, "-d", data, "-o", tmp_path / "out", "--steps", 12, "--threads", 1, "--json")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert report["rank"] == 4, "the largest of the federation's"
    assert (report["steps"], report["examples"], report["examples_seen"]) == (12, 12, 48)
    assert report["last_loss"] < report["first_loss"]
    phases = sum(report[f"{phase}_s"] for phase in ("data", "forward", "backward", "optimizer"))
    assert report["train_s"] == pytest.approx(phases)
    tokens = report["source_tokens"] + report["target_tokens"]
    assert report["tokens_per_s"] == pytest.approx(tokens / phases)
    adapter, base_model = read_peft(tmp_path / "out")
    assert base_model == "edgefed/tiny-t5"
    assert {module.rpartition(".")[2] for module in adapter} == {"q", "v"}
    scored = edgefed(
        "evaluate", "-c", config, "-d", data, "-a", tmp_path / "out", "--no-rouge", "--threads", 1, "--json"
    )
    base, trained = json.loads(scored.out)["results"]
    assert trained["loss"] < base["loss"]


def test_defaults_are_the_federations_and_seeds_repeat(edgefed: Run, config: Path, data: Path, tmp_path: Path) -> None:
    def trained(name: str, *options: object) -> bytes:
        done = edgefed("train", "-c", config, "-d", data, "-o", tmp_path / name, "--threads", 1, *options)
        assert done.code == 0
        assert "\nsteps\t6\n" in done.out, "rounds × local_steps"
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    first = trained("a")
    assert trained("b", "--seed", 5, "--rank", 4, "--quantization", "fp32") == first
    assert trained("c", "--seed", 6) != first
    assert trained("d", "--quantization", "nf4") != first


@pytest.mark.parametrize("aggregation", ["delta", "frozen_global"])
def test_it_starts_where_a_device_starts(edgefed: Run, data: Path, tmp_path: Path, aggregation: str) -> None:
    """One tiny step of plain A and B leaves A where it was: B is zero, so A has no gradient."""
    config = tmp_path / "federation.toml"
    config.write_text(FEDERATION.format(aggregation=aggregation).replace("1e-2", "1e-9"))
    done = edgefed("train", "-c", config, "-d", data, "-o", tmp_path / "out", "--rank", 2, "--steps", 1, "--threads", 1)
    assert done.code == 0
    norms = [np.linalg.norm(matrix.right, axis=1) for matrix in read_peft(tmp_path / "out")[0].values()]
    if aggregation == "delta":
        np.testing.assert_allclose(norms, 1.0, atol=1e-4)
        from edgefed.lora.adapters import initial_adapter
        from edgefed.models.checkpoint import linear_shapes
        from edgefed.models.finding import resolve_model

        sent = initial_adapter(linear_shapes(resolve_model("edgefed/tiny-t5"), ["q", "v"]), 4, seed=5)
        for module, matrix in read_peft(tmp_path / "out")[0].items():
            np.testing.assert_allclose(matrix.right, sent[module].right[:2], atol=1e-5)
    else:
        np.testing.assert_allclose(norms, 3**-0.5, rtol=0.3)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["-c", "none.toml"], 3, "none.toml: there is no such file"),
        (["-d", "none.jsonl"], 4, "none.jsonl does not exist"),
        (["-d", "wrong.jsonl"], 4, "wrong.jsonl, line 1: there is no field 'dialogue'; the fields are 'text'"),
        (["-o", "federation.toml"], 3, "federation.toml exists already"),
        (["-o", ".", "--force"], 3, "holds something that is no adapter"),
        (["--rank", "100000"], 3, "rank 100000 is over"),
    ],
)
def test_what_is_wrong_is_said(
    edgefed: Run,
    config: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.jsonl").write_text('{"text": "a"}\n')
    before = sorted(tmp_path.rglob("*"))
    given = {"-c": str(config), "-d": str(data), "-o": "out", **dict(zip(options[::2], options[1::2], strict=False))}
    flags = [option for option in options if option == "--force"]
    given.pop("--force", None)
    done = edgefed("train", *(text for pair in given.items() for text in pair), *flags)
    assert done.code == code
    assert said in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_interrupted_it_leaves_nothing(config: Path, data: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = ["train", "-c", config, "-d", data, "-o", tmp_path / "out", "--steps", 1_000_000, "--threads", 1]
    code = "import signal\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests may run where nobody interrupts
    code += "import edgefed.training.loop as loop\n"
    code += "step = loop._step\n"
    code += "loop._step = lambda *a: (print('step', flush=True), step(*a))[1]\n"
    code += "from edgefed.cli.main import main\nmain()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "step\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert sorted(tmp_path.rglob("*")) == before
