"""What an agent refuses before it says a word to anybody, and what it shows while there is nobody to say it to."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from edgefed.agent.options import AgentOptions
from edgefed.agent.session import run_agent
from edgefed.data.source import DataSource
from edgefed.errors import ConfigError, DataError
from edgefed.transport.options import Broker
from edgefed.updates.health import FILE, read_health
from tools.mosquitto import free_port


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


async def test_whoever_watches_an_agent_without_a_broker_sees_that_it_runs(tmp_path: Path) -> None:
    data, state = tmp_path / "data.jsonl", tmp_path / "state"
    data.write_text('{"dialogue": "a", "summary": "b"}\n')
    state.mkdir()
    (state / FILE).write_text('{"version": "0", "environment": "old", "pid": 1, "connected": true, "connections": 3}')
    options = AgentOptions(
        device="d",
        fleet="f",
        state=str(state),
        data=DataSource(path=str(data)),
        broker=Broker(host="127.0.0.1", port=free_port()),
    )
    running = asyncio.create_task(run_agent(options))
    try:
        for _ in range(1000):
            shown = read_health(state)
            if shown is not None and shown.pid == os.getpid():
                break
            await asyncio.sleep(0.01)
        assert shown is not None
        assert (shown.pid, shown.connected, shown.connections) == (os.getpid(), False, 0)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
