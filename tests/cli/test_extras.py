"""What is said where a package is missing that only an extra brings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefed.cli.extras import EXTRAS, missing_message, require
from edgefed.config import tomllib
from edgefed.errors import EdgefedError
from tests.cli.conftest import Done

PROJECT = Path(__file__).resolve().parents[2]


def absent(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(
    ("command", "packages", "said"),
    [
        ("bench", ("torch", "transformers", "peft", "numpy", "safetensors"), "peft, numpy and safetensors, which are"),
        ("bench", ("torch",), "this needs torch, which is not installed: pip install 'edgefed[train]'"),
        ("demo", ("amqtt",), "this needs amqtt, which is not installed: pip install 'edgefed[broker]'"),
        ("demo", ("torch", "numpy", "sqlalchemy", "amqtt"), "pip install 'edgefed[train,aggregator,broker]'"),
    ],
)
def test_a_base_install_says_at_once_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    edgefed: Callable[..., Done],
    command: str,
    packages: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    absent(monkeypatch, *packages)
    done = edgefed(command)
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_the_fewest_extras_that_bring_everything_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_message(["numpy", "torch"]).endswith("'edgefed[train]'")
    assert missing_message(["numpy"]).endswith("'edgefed[aggregator]'"), "the smaller one"
    require("json", "numpy")
    absent(monkeypatch, "numpy")
    with pytest.raises(EdgefedError, match="this needs numpy"):
        require("json", "numpy")


def test_the_table_says_what_the_project_says() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, bringing in EXTRAS.items():
        for extra in bringing:
            assert any(line.startswith(package.replace("_", "-")) for line in extras[extra]), (package, extra)
