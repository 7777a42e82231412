"""What an agent refuses before it says a word to anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.agent.options import AgentOptions
from edgefed.agent.session import run_agent
from edgefed.data.source import DataSource
from edgefed.errors import ConfigError, DataError


async def test_a_root_without_proc_and_sys_is_no_root(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"dialogue": "a", "summary": "b"}\n')
    state = tmp_path / "state"
    options = AgentOptions(
        device="d", fleet="f", state=str(state), root=str(tmp_path / "nosuch"), data=DataSource(path=str(data))
    )
    with pytest.raises(ConfigError, match=r"root: there is neither proc nor sys in .*nosuch: name the directory"):
        await run_agent(options, wait_for_broker=False)
    assert not state.exists()


async def test_examples_that_are_not_there_are_named(tmp_path: Path) -> None:
    options = AgentOptions(device="d", fleet="f", state=str(tmp_path), data=DataSource(path=str(tmp_path / "none")))
    with pytest.raises(DataError, match=r"there is no file or directory .*none"):
        await run_agent(options, wait_for_broker=False)
