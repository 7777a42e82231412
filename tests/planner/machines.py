"""Machines and work for the planner's tests."""

from __future__ import annotations

from typing import Any

from edgefed.models.layout import FLAN_T5
from edgefed.planner.values import Choice, Machine, Workload

GIB = 1 << 30
BASE = FLAN_T5["google/flan-t5-base"]


def machine(**changes: Any) -> Machine:
    """A processor with 16 GiB that runs everything."""
    values: dict[str, Any] = {
        "name": "desk",
        "hardware": "cpu",
        "memory_kind": "host",
        "memory_available_bytes": 16 * GIB,
        "memory_total_bytes": 16 * GIB,
        "flops_per_s": {"fp32": 2e11, "bf16": 1e11, "int8": 1.5e11, "nf4": 1.2e11},
        "memory_bandwidth_bytes_per_s": 1e10,
        "uplink_bytes_per_s": 1e6,
        "downlink_bytes_per_s": 2e6,
    }
    return Machine(**values | changes)


def workload(**changes: Any) -> Workload:
    """FLAN-T5-base on texts of 256 tokens."""
    values: dict[str, Any] = {
        "layout": BASE,
        "target_modules": ("q", "v"),
        "ranks": (2, 4, 8, 16, 32),
        "global_rank": 32,
        "source_tokens": 256,
        "target_tokens": 64,
    }
    return Workload(**values | changes)


def choice(**changes: Any) -> Choice:
    """Rank 8 in fp32, a pass of 4 examples."""
    values: dict[str, Any] = {"rank": 8, "held_rank": 8, "quantization": "fp32", "micro_batch_size": 4}
    return Choice(**values | changes)
