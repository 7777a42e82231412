"""Every reader of bytes from outside, on damaged and hostile input: a value or one of our errors, and little memory."""

from __future__ import annotations

import pytest

from tools.fuzzing.engine import Target, fuzz
from tools.fuzzing.targets import SLOW

INPUTS = 100  # each; `python -m benchmarks.fuzz.run` takes many more


@pytest.mark.torch
def test_no_reader_of_foreign_bytes_does_worse_than_refuse(targets: tuple[Target, ...]) -> None:
    assert len({target.name for target in targets}) == len(targets) >= 25
    found = []
    for target in targets:
        inputs = INPUTS // 5 if target.name in SLOW else INPUTS
        tally = fuzz(target, inputs, seed=2)
        assert tally.inputs == inputs or tally.defects
        found += [f"{target.name}: {defect.what} for {defect.input[:200]!r}" for defect in tally.defects]
    assert not found, "\n".join(found)
