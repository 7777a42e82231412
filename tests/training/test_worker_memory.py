from __future__ import annotations

import os

import pytest
import torch

from edgefed.training.worker_memory import forget_peak, peak_memory_bytes, peak_resident_bytes

LARGE = 200 << 20

pytestmark = pytest.mark.torch


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the mark cannot be set back here")
def test_a_peak_is_told_after_it_is_over_and_forgotten_on_request() -> None:
    forget_peak()
    before = peak_resident_bytes()
    tensor = torch.ones(LARGE, dtype=torch.uint8)
    del tensor
    assert peak_memory_bytes(torch.device("cpu")) > before + 0.9 * LARGE
    forget_peak()
    assert peak_resident_bytes() < before + 0.5 * LARGE
