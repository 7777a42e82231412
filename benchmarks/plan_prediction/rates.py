"""Measure this machine's rates on one thread, as a device does: `python -m benchmarks.plan_prediction.rates`.

The median of five measurements, for what else the machine does shows in the memory bandwidth.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from benchmarks.provenance import provenance
from edgefed.planner.values import QUANTIZATIONS
from edgefed.training.probe import probe


def main() -> None:
    """Write results/rates.json."""
    measured = [probe("cpu", threads=1).compute for _ in range(5)]
    document = {
        "flops_per_s": {
            name: statistics.median(one.flops_per_s[name].value or 0.0 for one in measured) for name in QUANTIZATIONS
        },
        "memory_bandwidth_bytes_per_s": statistics.median(
            one.memory_bandwidth_bytes_per_s.value or 0.0 for one in measured
        ),
        "provenance": provenance(),
    }
    (Path(__file__).parent / "results" / "rates.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
