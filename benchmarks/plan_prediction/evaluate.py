"""Compare what the planner predicts with what was measured: `python -m benchmarks.plan_prediction.evaluate`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from edgefed.models.layout import FLAN_T5
from edgefed.planner.memory import peak_memory
from edgefed.planner.seconds import step_seconds
from edgefed.planner.values import Choice, Machine, Workload

HERE = Path(__file__).parent


def read_rows() -> list[dict[str, Any]]:
    """Return the measured grid."""
    return [json.loads(line) for line in (HERE / "results" / "measured.jsonl").read_text().splitlines()]


def workload_of_case(case: dict[str, Any]) -> Workload:
    """Return what a configuration asks."""
    return Workload(
        layout=FLAN_T5[case["layout"]],
        target_modules=tuple(case["target_modules"]),
        ranks=(case["rank"],),
        global_rank=case["held_rank"],
        start="frozen",
        batch_size=case["batch"],
        source_tokens=case["source"],
        target_tokens=case["target"],
    )


def choice_of(case: dict[str, Any]) -> Choice:
    """Return how a configuration does it."""
    return Choice(
        rank=case["rank"],
        held_rank=case["held_rank"],
        quantization=case["quantization"],
        micro_batch_size=case["micro_batch"],
        gradient_checkpointing=case["checkpointing"],
    )


def machine_of_rates(rates: dict[str, Any]) -> Machine:
    """Return the machine that the grid was measured on, by the rates that edgefed's own probe found on one thread."""
    return Machine(
        name="one core",
        hardware="cpu",
        memory_kind="host",
        memory_available_bytes=1 << 40,
        memory_total_bytes=1 << 40,
        flops_per_s=rates["flops_per_s"],
        memory_bandwidth_bytes_per_s=rates["memory_bandwidth_bytes_per_s"],
    )


def main() -> None:
    """Write results/summary.json and print it."""
    rates = json.loads((HERE / "results" / "rates.json").read_text())
    machine = machine_of_rates(rates)
    memory: dict[bool, list[float]] = {True: [], False: []}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for row in read_rows():
        workload, choice = workload_of_case(row["case"]), choice_of(row["case"])
        measured = row["measured"]
        peak = max(measured["load_peak_bytes"], measured["train_peak_bytes"])
        memory[row["held_out"]].append(peak_memory(workload, choice).total_bytes / peak - 1)
        seconds[row["held_out"]].append(step_seconds(machine, workload, choice) / measured["step_cpu_s"])
    summary = {
        "memory": {_name(held): _errors(errors) for held, errors in memory.items()},
        "step_time": {_name(held): _calibrated(ratios) for held, ratios in seconds.items()},
        "rates": rates,
        "provenance": provenance(),
    }
    (HERE / "results" / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps({name: summary[name] for name in ("memory", "step_time")}, indent=2))


def _name(held_out: bool) -> str:
    return "held_out" if held_out else "fitted_on"


def _errors(errors: list[float]) -> dict[str, float]:
    absolute = sorted(abs(error) for error in errors)
    return {
        "configurations": len(errors),
        "median": round(statistics.median(absolute), 4),
        "p95": round(statistics.quantiles(absolute, n=20, method="inclusive")[-1], 4),
        "lowest": round(min(errors), 4),
        "highest": round(max(errors), 4),
    }


def _calibrated(ratios: list[float]) -> dict[str, float]:
    """Return median errors as they are, and after calibration on one configuration: each in turn is that one."""
    medians = [statistics.median(abs(ratio / one - 1) for ratio in ratios) for one in ratios]
    return {
        "configurations": len(ratios),
        "median_uncalibrated": round(statistics.median(abs(ratio - 1) for ratio in ratios), 4),
        "median_calibrated_on_one": round(statistics.median(medians), 4),
        "median_calibrated_on_the_worst_one": round(max(medians), 4),
    }


if __name__ == "__main__":
    main()
