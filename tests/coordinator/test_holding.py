"""What an operator's wishes mean for a round that waits."""

from __future__ import annotations

import pytest

from edgefed.coordinator.holding import why_waiting
from edgefed.coordinator.round_state import State

HELD = (("a", "paused"), ("b", "paused"), ("c", "draining"), ("d", "removed"))


@pytest.mark.parametrize(
    ("changes", "quorum", "told"),
    [
        ({}, 2, "it waits for 2 devices, and the operator has 1 draining and 2 paused"),
        ({"kind": "evaluate"}, 2, "it waits for 1 device, and the operator has 1 draining and 2 paused"),
        ({"candidates": ("e",)}, 1, ""),
        ({"phase": "training", "participants": ("a", "e"), "outstanding": ("a",)}, 1, ""),
        ({"phase": "training", "participants": ("a",), "outstanding": ("a",), "overdue": ("a",)}, 1, "it waits for 1"),
        ({"phase": "merging"}, 2, ""),
        ({"held": (("d", "removed"),)}, 2, ""),
    ],
)
def test_a_round_that_waits_because_of_the_operator_says_so(changes: dict[str, object], quorum: int, told: str) -> None:
    why = why_waiting(State(**{"round": 1, "held": HELD, **changes}), quorum)  # type: ignore[arg-type]
    assert why.startswith(told)
    assert bool(why) == bool(told)
