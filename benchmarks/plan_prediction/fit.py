"""Fit the constants of the planner's two models: `python -m benchmarks.plan_prediction.fit`.

Looks at the half of the grid that is not held out. Prints what belongs into `FITTED` of `edgefed.planner.memory` and
`FITTED_TIME` of `edgefed.planner.seconds`. Too little memory ends a worker and too much costs a rank, so that a
prediction below the measurement counts twelve times.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.plan_prediction.evaluate import choice_of, machine_of_rates, read_rows, workload_of_case
from edgefed.planner.memory import parts_of, slack_bases
from edgefed.planner.seconds import time_bases

HERE = Path(__file__).parent
TOO_LOW_COUNTS = 12.0


def main() -> None:
    """Print the constants."""
    rows = [row for row in read_rows() if not row["held_out"]]
    rates = json.loads((HERE / "results" / "rates.json").read_text())
    print("memory", _memory(rows))
    print("time", _time(rows, rates))


def _memory(rows: list[dict[str, Any]]) -> dict[str, float]:
    names = ["libraries_bytes", *slack_bases(workload_of_case(rows[0]["case"]), choice_of(rows[0]["case"]))]
    features, targets = [], []
    for row in rows:
        workload, choice = workload_of_case(row["case"]), choice_of(row["case"])
        peak = row["measured"]["train_peak_bytes"]
        known = sum(parts_of(workload, choice, "cpu").values())
        features.append([1e8 / peak, *(size / peak for size in slack_bases(workload, choice).values())])
        targets.append(1 - known / peak)
    found = _asymmetric(np.array(features), np.array(targets), TOO_LOW_COUNTS)
    return dict(zip(names, [found[0] * 1e8, *found[1:]], strict=True))


def _time(rows: list[dict[str, Any]], rates: dict[str, Any]) -> dict[str, float]:
    features, targets = [], []
    machine = machine_of_rates(rates)
    for row in rows:
        workload, choice = workload_of_case(row["case"]), choice_of(row["case"])
        seconds = row["measured"]["step_cpu_s"] / (workload.batch_size // choice.micro_batch_size)
        bases = time_bases(machine, workload, choice)
        features.append([bases[name] / seconds for name in ("traffic", "operator_s", "dequantize")])
        targets.append(1 - bases["products"] / seconds)
    found = _asymmetric(np.array(features), np.array(targets), 1.0)
    return dict(zip(("traffic", "operator_s", "dequantize"), found, strict=True))


def _asymmetric(features: NDArray[Any], targets: NDArray[Any], too_low_counts: float) -> list[float]:
    """Return non-negative coefficients of least squares in which errors below zero have a weight of their own."""
    weights = np.ones(len(targets))
    found = np.zeros(features.shape[1])
    for _ in range(100):
        found = _non_negative(features * np.sqrt(weights)[:, None], targets * np.sqrt(weights))
        weights = np.where(features @ found < targets, too_low_counts, 1.0)
    return [float(value) for value in found]


def _non_negative(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return the non-negative least squares solution, by trying which coefficients are zero: there are few of them."""
    count = a.shape[1]
    best, least = np.zeros(count), float(b @ b)
    for used in range(1, 2**count):
        columns = [index for index in range(count) if used >> index & 1]
        solution = np.linalg.lstsq(a[:, columns], b, rcond=None)[0]
        error = float(np.sum((a[:, columns] @ solution - b) ** 2))
        if (solution >= 0).all() and error < least:
            best, least = np.zeros(count), error
            best[columns] = solution
    return best


if __name__ == "__main__":
    main()
