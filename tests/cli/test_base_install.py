"""Commands where a package is missing that only an extra brings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Done


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
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    done = edgefed(command)
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing was begun"
