"""What is said where a package is missing that only an extra brings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgefed.config import tomllib
from edgefed.errors import EdgefedError
from edgefed.extras import EXTRAS, missing_message, require

PROJECT = Path(__file__).resolve().parents[1]


def test_the_fewest_extras_that_bring_everything_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_message(["numpy", "torch"]).endswith("'edgefed[train]'")
    assert missing_message(["numpy"]).endswith("'edgefed[aggregator]'"), "the smaller one"
    require("json", "numpy")
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(EdgefedError, match="this needs numpy"):
        require("json", "numpy")


def test_the_table_says_what_the_project_says() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, bringing in EXTRAS.items():
        for extra in bringing:
            assert any(line.startswith(package.replace("_", "-")) for line in extras[extra]), (package, extra)
