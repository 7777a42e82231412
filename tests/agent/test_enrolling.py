"""A token beside agent.toml: tried until it works, used once, and gone."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import pytest

from edgefed.agent.enrolling import until_enrolled
from edgefed.agent.options import AgentOptions
from edgefed.agent.service_manager import ServiceManager
from edgefed.data.source import DataSource

NOBODY = ServiceManager()
OPTIONS = AgentOptions(device="oven", fleet="kitchen", data=DataSource(path="d"))


def asking(place: Path, code: str) -> list[str]:
    """A program that counts how often it was asked, in `asked`."""
    counting = f"from pathlib import Path; asked = Path({str(place / 'asked')!r}); asked.open('a').write('.')"
    return [sys.executable, "-I", "-c", f"import os, sys, time; {counting}\n{code}"]


@pytest.fixture
def token(tmp_path: Path) -> Path:
    (tmp_path / "claim").mkdir()
    path = tmp_path / "claim" / "token"
    path.write_text("secret")
    return path


async def test_it_asks_until_it_is_enrolled_and_then_forgets_the_token(
    tmp_path: Path, token: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    command = asking(tmp_path, "sys.exit(16 if len(asked.read_text()) < 3 else 0)")
    await until_enrolled(OPTIONS, token, command, NOBODY, first_delay_s=0.01)
    assert (tmp_path / "asked").read_text() == "..."
    assert not token.exists()
    said = [record.getMessage() for record in caplog.records]
    assert "not enrolled (exit code 16); trying again in 0.01 s" in said
    assert "not enrolled (exit code 16); trying again in 0.02 s" in said


async def test_without_a_token_there_is_nothing_to_do(tmp_path: Path) -> None:
    await until_enrolled(OPTIONS, tmp_path / "none", asking(tmp_path, ""), NOBODY)
    assert not (tmp_path / "asked").exists()


async def test_a_token_that_cannot_be_removed_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    token = Path("/proc/self/status")  # nobody, root neither, can remove it
    await until_enrolled(OPTIONS, token, ["true"], NOBODY)
    assert "cannot be removed from here" in caplog.text


async def test_what_asks_ends_with_the_agent(tmp_path: Path, token: Path) -> None:
    command = asking(tmp_path, "asked.with_name('pid').write_text(str(os.getpid())); time.sleep(600)")
    task = asyncio.create_task(until_enrolled(OPTIONS, token, command, NOBODY))
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):  # noqa: ASYNC110  # another process writes it
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert token.exists()
