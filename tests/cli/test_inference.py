from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefed.cli.inference import check_output, read_adapter, work_of
from edgefed.errors import AdapterError, ConfigError, ModelError
from edgefed.lora.low_rank import LowRank
from edgefed.lora.peft_files import write_peft
from edgefed.protocol.tasks import SummarizationTask

FEDERATION = """\
fleet = "test"
[model]
name = "edgefed/tiny-t5"
[task]
source = "text"
prompt = "shorten: {source}"
max_target_tokens = 9
[models]
"edgefed/tiny-t5" = "elsewhere"
"""


class TestWork:
    def test_the_file_says_what_and_options_win(self, tmp_path: Path) -> None:
        config = tmp_path / "federation.toml"
        config.write_text(FEDERATION)
        work = work_of(config)
        assert work.model == "edgefed/tiny-t5"
        assert work.models == {"edgefed/tiny-t5": str(tmp_path / "elsewhere")}
        assert work.task == SummarizationTask(source="text", prompt="shorten: {source}", max_target_tokens=9)
        work = work_of(config, "another/model", source_field="dialogue", target_field="title", prompt="{source}: short")
        assert work.model == "another/model"
        assert work.task == SummarizationTask(
            source="dialogue", target="title", prompt="{source}: short", max_target_tokens=9
        )

    def test_without_a_file(self) -> None:
        assert work_of(None, "some/model").task == SummarizationTask()
        with pytest.raises(ConfigError, match=r"--model.*--config"):
            work_of(None)

    def test_a_prompt_without_the_text(self) -> None:
        with pytest.raises(ConfigError, match=r"--prompt 'summarize': prompt must contain \{source\}"):
            work_of(None, "some/model", prompt="summarize")

    @pytest.mark.torch
    def test_an_interrupt_that_a_library_loses_while_it_loads_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from edgefed.training import base_model

        def load(*arguments: Any, **options: Any) -> Any:
            with contextlib.suppress(KeyboardInterrupt):  # as the interpreter does in a destructor
                signal.raise_signal(signal.SIGINT)
            return loaded(*arguments, **options)

        loaded = base_model.load_base
        monkeypatch.setattr(base_model, "load_base", load)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                work_of(None, "edgefed/tiny-t5").load()
        finally:
            signal.signal(signal.SIGINT, before)

    def test_a_model_that_is_not_here_could_be_named_otherwise(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"no model directory '\./nowhere'.*--model.*\[models\] with --config"):
            work_of(None, "./nowhere").path()
        config = tmp_path / "federation.toml"
        config.write_text(FEDERATION)
        with pytest.raises(ModelError) as told:
            work_of(config).path()
        assert "--config" not in str(told.value), "the file was given, and names a directory that is not there"


class TestReadAdapter:
    def test_of_a_run_the_best_and_else_the_last(self, run_directory: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(run_directory, run)
        assert read_adapter(run).directory == run / "adapter"
        shutil.copytree(run / "adapter", run / "adapter-best")
        assert read_adapter(run).directory == run / "adapter-best"
        assert read_adapter(run / "adapter").directory == run / "adapter"

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(AdapterError, match="holds no PEFT adapter"):
            read_adapter(tmp_path)
        (tmp_path / "global").mkdir()
        with pytest.raises(AdapterError, match=r"has written no adapter yet; `edgefed export`"):
            read_adapter(tmp_path)

    def test_modules_of_different_ranks_become_one_rank_and_the_same_matrices(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        adapter = {
            name: LowRank(random.normal(size=(6, rank)).astype("f4"), random.normal(size=(rank, 5)).astype("f4"))
            for name, rank in (("a.q", 3), ("b.q", 1))
        }
        write_peft(tmp_path / "adapter", adapter, base_model="some/model")
        factors = read_adapter(tmp_path).factors
        assert {matrix.rank for matrix in factors.values()} == {3}
        for name, matrix in adapter.items():
            np.testing.assert_allclose(factors[name].dense(), matrix.dense(), atol=1e-6)


class TestFits:
    def test_another_name_is_warned_of_and_another_path_to_the_same_is_not(
        self, run_directory: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        read = read_adapter(run_directory)
        path = work_of(None, "edgefed/tiny-t5").path()
        read.check_fits(work_of(None, "edgefed/tiny-t5"))
        assert capsys.readouterr().err == ""
        read.check_fits(work_of(None, str(path)))
        assert "adapter was made for edgefed/tiny-t5, and is used on " in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("module", "shape", "message"),
        [
            ("encoder.block.0.layer.0.SelfAttention.nix", (128, 128), r"names 'nix'; the linear layers .* are .*\bq\b"),
            ("encoder.block.77.layer.0.SelfAttention.q", (128, 128), "block.77.*tiny-t5 is without it"),
            ("encoder.block.0.layer.0.SelfAttention.q", (7, 128), r"shape \(7, 128\), .* is of shape \(\d+, \d+\)"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path: Path, module: str, shape: tuple[int, int], message: str) -> None:
        matrix = LowRank(np.ones((shape[0], 1), np.float32), np.ones((1, shape[1]), np.float32))
        write_peft(tmp_path / "adapter", {module: matrix}, base_model="edgefed/tiny-t5")
        with pytest.raises(AdapterError, match=message):
            read_adapter(tmp_path).check_fits(work_of(None, "edgefed/tiny-t5"))


class TestOutput:
    def test_parents_are_made_and_the_directory_is_not(self, tmp_path: Path) -> None:
        place = check_output(tmp_path / "a" / "b", force=False)
        assert place.is_absolute()
        assert [path.name for path in tmp_path.rglob("*")] == ["a"]

    def test_what_is_there_is_replaced_only_when_told_and_only_if_it_is_an_adapter(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        with pytest.raises(ConfigError, match="--force"):
            check_output(tmp_path / "mine", force=False)
        check_output(tmp_path / "mine", force=True)
        (tmp_path / "mine" / "thesis.tex").write_text("")
        with pytest.raises(ConfigError, match="no adapter; it is not replaced"):
            check_output(tmp_path / "mine", force=True)
        (tmp_path / "mine" / "adapter_config.json").write_text("{}")
        check_output(tmp_path / "mine", force=True)
        with pytest.raises(ConfigError, match="is a file"):
            check_output(tmp_path / "mine" / "thesis.tex", force=True)
        with pytest.raises(ConfigError, match="cannot be used"):
            check_output(tmp_path / "mine" / "thesis.tex" / "below", force=False)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(terminal: bool) -> None:
    code = (
        "from edgefed.cli.inference import progress\nwith progress('counting') as move:\n    move(2, 4, 'loss 1.500')"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=theirs if terminal else subprocess.PIPE, env=environment, check=True
    )
    os.close(theirs)
    if not terminal:
        os.close(ours)
        assert done.stderr == b""
        return
    with os.fdopen(ours, "rb", buffering=0) as shown:
        drawn = shown.read(4096).decode()
    assert "counting  loss 1.500" in drawn
    assert "2/4" in drawn
