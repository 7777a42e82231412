from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import resources
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import NamedTuple

import pytest

from edgefed.cli.main import main


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def edgefed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `edgefed <arguments>` in this process, with `text` as its standard input."""

    def run(*arguments: object, text: str | bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["edgefed", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(text.encode() if isinstance(text, str) else text)))
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def held_out() -> Path:
    """Dialogues that ship with the package."""
    return Path(str(resources.files("edgefed.assets"))) / "dialogues" / "held_out.jsonl"


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's directory without its states: a random adapter of rank 4 for the shipped model's q and v."""
    import numpy as np

    from edgefed.lora.low_rank import LowRank
    from edgefed.lora.peft_files import write_peft
    from edgefed.models.checkpoint import linear_shapes
    from edgefed.models.finding import resolve_model

    random = np.random.default_rng(0)
    adapter = {
        module: LowRank(
            random.normal(size=(m, 4)).astype("f4") * np.float32(0.1), random.normal(size=(4, n)).astype("f4")
        ).compressed(4)
        for module, (m, n) in linear_shapes(resolve_model("edgefed/tiny-t5"), ["q", "v"]).items()
    }
    directory = tmp_path_factory.mktemp("run")
    write_peft(directory / "adapter", adapter, base_model="edgefed/tiny-t5", target_modules=["q", "v"])
    return directory
