from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_dialogues_are_what_the_script_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.make_dialogues", "--output", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    shipped = Path(str(resources.files("edgefed.assets"))) / "dialogues"
    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()


def test_no_held_out_text_is_trained_on_and_topics_are_balanced() -> None:
    shipped = Path(str(resources.files("edgefed.assets"))) / "dialogues"
    train, held_out = (
        [json.loads(line) for line in (shipped / name).read_text(encoding="utf-8").splitlines()]
        for name in ("train.jsonl", "held_out.jsonl")
    )
    for field in ("dialogue", "summary"):
        assert not {row[field] for row in train} & {row[field] for row in held_out}
    topics = {row["topic"] for row in train}
    assert len(topics) >= 6
    for rows in (train, held_out):
        assert {sum(row["topic"] == topic for row in rows) for topic in topics} == {len(rows) // len(topics)}
