"""Write the synthetic dialogues that ship with edgefed, the same bytes for the same seed.

    python -m tools.make_dialogues

No held-out dialogue or summary occurs in the training rows: every one has another combination of slot values.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from tools.dialogue_grammar import Draft
from tools.dialogue_topics import TOPICS

ASSETS = Path(__file__).resolve().parents[1] / "edgefed" / "assets" / "dialogues"


def rows(count: int, seed: str, seen: set[str]) -> list[tuple[str, Draft]]:
    """Return `count` (topic, draft), topics in turn, none of whose texts is in `seen`, and add them to it."""
    rng = Random(seed)
    found: list[tuple[str, Draft]] = []
    topics = sorted(TOPICS)
    while len(found) < count:
        topic = topics[len(found) % len(topics)]
        draft = TOPICS[topic](rng)
        if not {draft.dialogue, draft.summary} & seen:
            seen |= {draft.dialogue, draft.summary}
            found.append((topic, draft))
    rng.shuffle(found)
    return found


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--train", type=int, default=1600)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for name, count in (("train", options.train), ("held_out", options.held_out)):
        lines = [
            json.dumps({"dialogue": draft.dialogue, "summary": draft.summary, "topic": topic}, ensure_ascii=False)
            for topic, draft in rows(count, f"{name}/{options.seed}", seen)
        ]
        (options.output / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{options.output / name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    main()
