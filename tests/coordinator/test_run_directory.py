from __future__ import annotations

from pathlib import Path

from edgefed.coordinator.run_directory import RunDirectory
from edgefed.files import temporary_beside


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.state(3).mkdir()
    (run.updates / "one-1-abc.safetensors").write_bytes(b"update")
    run.history.write_text("{}\n")
    before = sorted(tmp_path.rglob("*"))
    temporary_beside(run.history).write_text("half a line")
    temporary_beside(run.adapter).mkdir()
    (temporary_beside(run.state(4))).write_bytes(b"half a state")
    run.remove_leftovers()
    assert sorted(tmp_path.rglob("*")) == before
