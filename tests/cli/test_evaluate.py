from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.cli.inference import read_adapter
from edgefed.data.examples import read_examples
from edgefed.models.finding import resolve_model
from edgefed.protocol.tasks import SummarizationTask

pytestmark = pytest.mark.torch
Run = Callable[..., Any]
TINY = ("--model", "edgefed/tiny-t5", "--threads", 1)


def test_the_base_and_every_adapter_on_the_same_examples(edgefed: Run, run_directory: Path, held_out: Path) -> None:
    adapters = ("--adapter", run_directory, "-a", run_directory / "adapter")
    done = edgefed("evaluate", *TINY, "--data", held_out, "--max-examples", 3, *adapters, "--json")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert (report["base_model"], report["quantization"], report["data"]) == ("edgefed/tiny-t5", "fp32", str(held_out))
    base, run, adapter = report["results"]
    assert (base["model"], run["model"]) == ("base model", str(run_directory / "adapter")), "a run says which it took"
    assert base["examples"] == 3
    assert run == adapter
    assert run["loss"] != base["loss"]
    assert all(0 <= run[key] <= 1 for key in ("rouge1", "rouge2", "rouge_l"))


def test_scores_are_those_of_the_library(edgefed: Run, run_directory: Path, held_out: Path) -> None:
    from edgefed.training.base_model import load_base
    from edgefed.training.evaluate import validation_loss, with_adapter

    done = edgefed("evaluate", *TINY, "-d", held_out, "--max-examples", 3, "-a", run_directory, "--no-rouge")
    header, base, adapted = (line.split("\t") for line in done.out.splitlines())
    assert header == ["model", "loss"], "no summaries, no ROUGE"
    model = load_base(resolve_model("edgefed/tiny-t5"), threads=1)
    examples = read_examples(held_out, source_field="dialogue", target_field="summary")[:3]
    assert base[1] == f"{validation_loss(model, examples, SummarizationTask()):.4f}"
    with with_adapter(model, read_adapter(run_directory).factors) as with_it:
        assert adapted[1] == f"{validation_loss(with_it, examples, SummarizationTask()):.4f}"


def test_settings_come_from_the_federation(edgefed: Run, held_out: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()[:3]]
    (tmp_path / "own.jsonl").write_text(
        "".join(json.dumps({"a": r["dialogue"], "b": r["summary"]}) + "\n" for r in rows)
    )
    config = tmp_path / "federation.toml"
    config.write_text('fleet = "t"\n[model]\nname = "edgefed/tiny-t5"\n[task]\nsource = "a"\ntarget = "b"\n')
    short = ("--no-rouge", "--threads", 1, "--json")
    by_file = edgefed("evaluate", "-c", config, "-d", tmp_path / "own.jsonl", *short)
    by_options = edgefed("evaluate", *TINY, "-d", held_out, "--max-examples", 3, "--no-rouge", "--json")
    assert json.loads(by_file.out)["results"] == json.loads(by_options.out)["results"]
    other_prompt = edgefed("evaluate", "-c", config, "--prompt", "{source}", "-d", tmp_path / "own.jsonl", *short)
    assert json.loads(other_prompt.out)["results"] != json.loads(by_file.out)["results"]


def test_quantization_and_beams_reach_the_model(edgefed: Run, held_out: Path) -> None:
    def result(*options: object) -> dict[str, float]:
        done = edgefed("evaluate", *TINY, "-d", held_out, "--max-examples", 3, "--json", *options)
        found: dict[str, float] = json.loads(done.out)["results"][0]
        return found

    plain = result()
    nf4 = result("--quantization", "nf4", "--no-rouge")
    assert nf4["loss"] != plain["loss"]
    assert nf4["loss"] == pytest.approx(plain["loss"], rel=0.2)
    beams = result("--beams", 3)
    assert beams["loss"] == plain["loss"]
    assert [beams[key] for key in ("rouge1", "rouge_l")] != [plain[key] for key in ("rouge1", "rouge_l")]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([*TINY, "--data", "nowhere.jsonl"], 4, "nowhere.jsonl does not exist"),
        (["--data", "HELD_OUT"], 3, "which base model?"),
        (
            [*TINY, "--data", "HELD_OUT", "--source-field", "text"],
            4,
            "line 1: there is no field 'text'; the fields",
        ),
        ([*TINY, "--data", "HELD_OUT", "--adapter", "."], 8, "holds no PEFT adapter"),
        ([*TINY, "--data", "HELD_OUT", "--adapter", "malformed"], 8, "adapter_config.json: not JSON"),
        (["--model", "./no/such/model", "--data", "HELD_OUT"], 5, "no model directory './no/such/model'"),
        ([*TINY, "--data", "HELD_OUT", "--no-rouge", "--beams", "2"], 2, "--beams has no effect"),
        ([*TINY, "--data", "HELD_OUT", "--quantization", "fp16"], 2, "fp16"),
        ([*TINY, "--data", "HELD_OUT", "--prompt", "so"], 3, "prompt must contain {source}"),
    ],
)
def test_what_is_wrong_is_said(
    edgefed: Run,
    held_out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "malformed").mkdir()
    (tmp_path / "malformed" / "adapter_config.json").write_text("nonsense")
    done = edgefed("evaluate", *(held_out if option == "HELD_OUT" else option for option in options))
    assert done.code == code
    assert said in done.err
    assert done.out == ""
