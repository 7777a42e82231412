from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from edgefed.data.examples import Example, read_examples
from edgefed.models.checkpoint import linear_shapes
from edgefed.models.finding import resolve_model
from edgefed.protocol.tasks import SummarizationTask
from edgefed.training.base_model import LoadedModel, load_base


@pytest.fixture(scope="session")
def tiny_path() -> Path:
    return resolve_model("edgefed/tiny-t5")


@pytest.fixture(scope="session")
def base(tiny_path: Path) -> LoadedModel:
    """The tiny T5 in fp32 on the CPU, shared: whoever installs LoRA removes it."""
    return load_base(tiny_path, "fp32", "cpu", threads=1)


@pytest.fixture(scope="session")
def shapes(tiny_path: Path) -> dict[str, tuple[int, int]]:
    return linear_shapes(tiny_path, ["q", "v"])


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    path = Path(str(resources.files("edgefed.assets"))) / "dialogues" / "train.jsonl"
    return read_examples(path, source_field="dialogue", target_field="summary")[:64]


@pytest.fixture(scope="session")
def task() -> SummarizationTask:
    return SummarizationTask(max_source_tokens=160, max_target_tokens=64)
