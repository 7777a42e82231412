from __future__ import annotations

import os

import pytest
import torch

from edgefed.training.peak_memory import PeakMemory

LARGE = 200 << 20


pytestmark = pytest.mark.torch


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the mark cannot be set back here")
def test_a_peak_is_told_after_it_is_over_and_forgotten_by_the_next() -> None:
    memory = PeakMemory(torch.device("cpu"))
    before = memory.so_far_bytes()
    tensor = torch.ones(LARGE, dtype=torch.uint8)
    del tensor
    assert memory.so_far_bytes() > before + 0.9 * LARGE
    assert PeakMemory(torch.device("cpu")).so_far_bytes() < before + 0.5 * LARGE
