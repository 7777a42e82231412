"""`edgefed status`: which broker it asks, and what of whom; nobody answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
FEDERATION = """\
fleet = "kitchen"
[model]
name = "m"
[broker]
host = "localhost"
port = 1
"""


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ((), "localhost:1"),
        (("--port", "2"), "localhost:2"),
        (("--host", "127.0.0.1"), "127.0.0.1:1"),
        (("--host", "127.0.0.1", "--port", "2"), "127.0.0.1:2"),
    ],
)
def test_the_command_line_wins_over_the_file(edgefed: Run, tmp_path: Path, words: tuple[str, ...], asked: str) -> None:
    config = tmp_path / "federation.toml"
    config.write_text(FEDERATION)
    done = edgefed("status", "--config", config, *words)
    assert (done.code, asked in done.err) == (6, True), done.err


def test_without_a_file_the_fleet_has_to_be_named(edgefed: Run) -> None:
    done = edgefed("status", "--port", "1")
    assert (done.code, "which fleet? Name it with --fleet" in done.err) == (3, True)
    assert "localhost:1" in edgefed("status", "--port", "1", "--fleet", "kitchen").err
