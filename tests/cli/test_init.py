from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.config import example_agent, example_federation, read_agent, read_federation

Run = Callable[..., Any]


def test_both_are_written_and_valid(edgefed: Run, tmp_path: Path) -> None:
    done = edgefed("init", tmp_path / "new")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"wrote {tmp_path}/new/federation.toml\nwrote {tmp_path}/new/agent.toml\n"
    assert read_federation(tmp_path / "new/federation.toml").fleet == read_agent(tmp_path / "new/agent.toml").fleet


def test_here_by_default(edgefed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert edgefed("init").code == 0
    assert (tmp_path / "federation.toml").read_text() == example_federation()
    assert (tmp_path / "agent.toml").read_text() == example_agent()


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--agent"], {"agent.toml"}),
        (["--federation"], {"federation.toml"}),
        (["--agent", "--federation"], {"agent.toml", "federation.toml"}),
    ],
)
def test_one_of_them(edgefed: Run, tmp_path: Path, flags: list[str], names: set[str]) -> None:
    assert edgefed("init", tmp_path, *flags).code == 0
    assert {path.name for path in tmp_path.iterdir()} == names


def test_overwrites_only_when_told(edgefed: Run, tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("mine")
    done = edgefed("init", tmp_path)
    assert done.code == 3
    assert done.err == f"edgefed: {tmp_path}/agent.toml exist already; --force overwrites\n"
    assert [path.name for path in tmp_path.iterdir()] == ["agent.toml"]
    assert (tmp_path / "agent.toml").read_text() == "mine"
    assert edgefed("init", tmp_path, "--force").code == 0
    assert (tmp_path / "agent.toml").read_text() == example_agent()


def test_place_that_cannot_be_written(edgefed: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = edgefed("init", tmp_path / "file" / "below")
    assert done.code == 3
    assert "cannot be used: Not a directory" in done.err
