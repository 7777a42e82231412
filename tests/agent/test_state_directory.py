from __future__ import annotations

from pathlib import Path

from edgefed.agent.state_directory import StateDirectory


def test_a_run_is_known_once_something_was_kept_for_it(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    assert not state.knows("a1")
    assert state.offers("a1") == []
    assert state.knows("a1")
    assert not state.knows("b2")
    state.close()
