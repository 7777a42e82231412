"""Does the probe report the matrix-product rate that a bare torch loop of the same shapes reaches?

    python -m benchmarks.probe_rate.run

Probe and bare loop take turns in one process, for the same time each and with the same size, so that whatever else the
machine does meets both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import provenance
from edgefed.training.probe import matmul_rate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def bare_rate(dtype: torch.dtype, place: torch.device, size: int, budget_s: float) -> float:
    """Return FLOP/s of what one would write: multiply again and again, and divide by the whole time."""
    a = torch.randn(size, size, device=place).to(dtype)
    b = torch.randn(size, size, device=place).to(dtype)
    for _ in range(3):
        a @ b
    products = 0
    finish(place)
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < budget_s:
        a @ b
        products += 1
        if place.type == "cuda" and products % 16 == 0:
            finish(place)  # or the queue would run far ahead of the clock
    finish(place)
    return 2.0 * size**3 * products / (time.perf_counter() - started_s)


def finish(place: torch.device) -> None:
    """Wait for what was started."""
    if place.type == "cuda":
        torch.cuda.synchronize()


def measure(dtype: torch.dtype, place: torch.device, budget_s: float, repeats: int) -> dict[str, Any]:
    """Return the rates of both sides and the median of the ratios of neighbours in time."""
    pairs, sizes = [], []
    for repeat in range(repeats):
        ours, size = matmul_rate(dtype, place, budget_s)
        theirs = bare_rate(dtype, place, size, budget_s)
        if repeat % 2:
            ours, again = matmul_rate(dtype, place, budget_s)
            if again != size:
                continue
        pairs.append((ours, theirs))
        sizes.append(size)
        print(f"  {size}: probe {ours:.4g}, bare {theirs:.4g} FLOP/s, ratio {ours / theirs:.3f}", flush=True)
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    return {
        "sizes": sorted(set(sizes)),
        "probe_flops_per_s": statistics.median(ours for ours, _ in pairs),
        "bare_flops_per_s": statistics.median(theirs for _, theirs in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "ratio_least": ratios[0],
        "repeats": len(pairs),
    }


def main() -> None:
    """Measure every data type and write results/<cpu|cuda>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--budget-s", type=float, default=0.8, help="of each side in each turn; the probe's own is 0.8")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = torch.device(options.device)
    found: dict[str, Any] = {"provenance": provenance(), "device": options.device, "threads": options.threads}
    found |= {"budget_s": options.budget_s, "data_types": {}}
    if options.device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    for name, dtype in DTYPES.items():
        print(name, flush=True)
        found["data_types"][name] = measure(dtype, place, options.budget_s, options.repeats)
    output = options.output or Path(__file__).parent / "results" / f"{options.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, one in found["data_types"].items():
        print(f"{name}: ratio {one['ratio_median']:.3f} (quartiles {one['ratio_quartiles']})")


if __name__ == "__main__":
    main()
