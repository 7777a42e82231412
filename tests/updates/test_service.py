"""Asking `systemctl`: what it says, and what if it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefed.errors import UpdateError
from edgefed.updates.service import Service, State


def systemctl(path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (path / "systemctl").write_text(f"#!/bin/sh\n{script}\n")
    (path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (r"MainPID=42\nNRestarts=3\nActiveState=active\n", State(active=True, pid=42, restarts=3)),
        (r"MainPID=0\nNRestarts=0\nActiveState=activating\n", State(active=False, pid=0, restarts=0)),
        (r"ActiveState=failed\n", State(active=False, pid=0, restarts=0)),
    ],
)
def test_the_state_of_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, state: State) -> None:
    systemctl(tmp_path, monkeypatch, f"printf '{said}'")
    assert Service().state() == state


def test_a_service_manager_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl(tmp_path, monkeypatch, "echo Failed to connect to bus >&2; exit 1")
    with pytest.raises(UpdateError, match=r"systemctl restart --no-block edgefed-agent\.service failed: Failed to con"):
        Service().restart()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(UpdateError, match="cannot be asked"):
        Service().state()
