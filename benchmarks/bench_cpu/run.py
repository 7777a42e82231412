"""`edgefed bench` of FLAN-T5-small's layout on a CPU, in every precision, beside fp32.

    python -m benchmarks.bench_cpu.run

The precisions take turns, several times over, so that whatever else the machine does meets all of them. What is written
is a reference that `edgefed bench --reference` and `edgefed report --reference` take: of each precision the turn with
the median step, and under `over_fp32` the medians of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.provenance import provenance
from edgefed.reports.reference import BenchFile, BenchResult
from edgefed.reports.utilization import Utilization, measure

RATIOS = {
    "step": lambda use: use.step_s,
    "mfu_live": lambda use: use.mfu_live,
    "peak_memory": lambda use: use.peak_memory_bytes,
}


def one_turn(options: list[str], scratch: Path) -> list[BenchResult]:
    """Return a bench's results, a precision each; the checkpoint is written in the first turn."""
    output = scratch / "turn.json"
    command = [sys.executable, "-m", "edgefed", "bench", *options, "--keep", str(scratch), "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return msgspec.json.decode(output.read_bytes(), type=BenchFile).results


def median_of(turns: list[list[BenchResult]], number: int) -> BenchResult:
    """Return the result with the median step among those of one precision."""
    return sorted((turn[number] for turn in turns), key=lambda one: step_s(measure(one.record)))[len(turns) // 2]


def step_s(use: Utilization) -> float:
    assert use.step_s.value is not None
    return use.step_s.value


def over_first(turns: list[list[BenchResult]], number: int) -> dict[str, float]:
    """Return the medians of the ratios to the first precision in the same turn."""
    ratios: dict[str, list[float]] = {name: [] for name in RATIOS}
    for turn in turns:
        this, first = measure(turn[number].record), measure(turn[0].record)
        for name, read in RATIOS.items():
            ratios[name].append(read(this).value / read(first).value)
    return {name: statistics.median(values) for name, values in ratios.items()}


def main() -> None:
    """Measure and write results/small.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="per turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--precisions", default="fp32,bf16,int8,nf4")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "small.json")
    given = parser.parse_args()
    options = ["--shape", "flan-t5-small", "--device", "cpu", "--threads", str(given.threads), "-q", given.precisions]
    options += ["--batch", str(given.batch), "--steps", str(given.steps), "--warmup", "1"]
    with tempfile.TemporaryDirectory(prefix="edgefed-bench-") as scratch:
        turns = []
        for turn in range(given.turns):
            turns.append(one_turn(options, Path(scratch)))
            print(turn, *(f"{one.record.quantization} {step_s(measure(one.record)):.3f} s" for one in turns[-1]))
    results = [median_of(turns, number) for number in range(len(turns[0]))]
    document: dict[str, Any] = msgspec.to_builtins(BenchFile(results=results))
    document["over_fp32"] = {one.record.quantization: over_first(turns, i) for i, one in enumerate(results)}
    document |= {"turns": given.turns, "provenance": provenance()}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
