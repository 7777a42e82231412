"""Compare ways to combine updates of different ranks: `python -m benchmarks.aggregation_quality.run`.

Every trial is one line in the results; those that are there already are not run again, so it may be stopped and
started at will.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.progress import track

from benchmarks.aggregation_quality.trials import Trial, run_trial
from benchmarks.provenance import provenance
from edgefed.errors import EdgefedError

HERE = Path(__file__).parent
FEDERATED = ("flexlora", "delta", "frozen_global", "hetlora", "flora", "fedit")
RATES = (2e-3, 5e-3, 1.2e-2)
SEEDS = (0, 1, 2)
TUNING_SEED = 100


def tuning() -> list[Trial]:
    """Return short trials that find every contender's learning rate, on a split that no comparison uses."""
    who = (*FEDERATED, "centralized")
    return [Trial("dirichlet", one, TUNING_SEED, rate, 3, 6, purpose="tune") for rate in RATES for one in who]


def best_rates(done: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return the learning rate of the lowest loss per contender; devices alone use centralized training's."""
    best: dict[str, tuple[float, float]] = {}
    for row in done:
        if row["purpose"] == "tune":
            best[row["who"]] = min(best.get(row["who"], (float("inf"), 0.0)), (row["loss"], row["learning_rate"]))
    rates = {who: rate for who, (_, rate) in best.items()}
    return rates | {"local_only": rates["centralized"]}


def comparison(rates: dict[str, float]) -> list[Trial]:
    """Return all contenders over both splits and the three tasks, a whole seed at a time."""
    trials = [Trial(scenario, "base", 0, 1.0, 1, 1) for scenario in ("dirichlet", "three_tasks")]
    for seed in SEEDS:
        for scenario, rounds, steps in (("dirichlet", 6, 6), ("three_tasks", 6, 8), ("section_header", 6, 6)):
            trials += [
                Trial(scenario, who, seed, rates[who], rounds, steps)  # type: ignore[arg-type]
                for who in (*FEDERATED, "centralized", "local_only")
            ]
    return trials


def winner(done: Iterable[dict[str, Any]]) -> str:
    """Return the federated contender of the lowest mean loss on the Dirichlet split."""
    losses: dict[str, list[float]] = {}
    for row in done:
        if row["purpose"] == "compare" and row["scenario"] == "dirichlet" and row["who"] in FEDERATED:
            losses.setdefault(row["who"], []).append(row["loss"])
    return min(losses, key=lambda who: mean(losses[who]))


def sweep(rates: dict[str, float], who: str) -> list[Trial]:
    """Return the same number of steps in fewer and in more rounds, and the four server optimizers."""
    steps = [Trial("dirichlet", who, 0, rates[who], rounds, 36 // rounds, purpose="sweep") for rounds in (2, 3, 12)]  # type: ignore[arg-type]
    optimizers = [("momentum", 0.3), ("momentum", 1.0), ("adam", 3e-4), ("adam", 1e-3), ("adamw", 1e-3)]
    return steps + [
        Trial("dirichlet", who, 0, rates[who], 6, 6, name, rate, purpose="sweep")  # type: ignore[arg-type]
        for name, rate in (("averaging", 1.0), *optimizers)
    ]


def read(results: Path) -> list[dict[str, Any]]:
    """Return the trials that were run."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def run_all(trials: Sequence[Trial], options: argparse.Namespace, label: str) -> None:
    """Run the trials that are missing in the results, each process on a core of its own."""
    known = {row["id"] for row in read(options.results)}
    missing = [trial for trial in trials if trial.id not in known]
    cores = multiprocessing.Manager().Queue()
    for core in options.cores:
        cores.put(core)
    context = multiprocessing.get_context("spawn")
    jobs = [(trial, options.model, options.data) for trial in missing]
    with context.Pool(len(options.cores), _pin, (cores,)) as pool:
        for row in track(pool.imap_unordered(_run, jobs), total=len(missing), description=label):
            if "failed" in row:
                print(f"{row['id']}: {row['failed']}")
                continue
            with options.results.open("a") as file:
                file.write(json.dumps(row | {"provenance": provenance()}) + "\n")


def without_dropout(model: Path, directory: Path) -> Path:
    """Return a view of the model whose own dropout is off: on a CPU it costs a third of a step, for everybody alike."""
    for file in model.iterdir():
        if file.name != "config.json":
            (directory / file.name).symlink_to(file.resolve())
    settings = json.loads((model / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(settings | {"dropout_rate": 0.0}))
    return directory


def _pin(cores: Any) -> None:
    os.sched_setaffinity(0, {cores.get()})


def _run(job: tuple[Trial, Path, Path]) -> dict[str, Any]:
    trial, model, data = job
    try:
        return {"id": trial.id} | run_trial(trial, model, data)
    except EdgefedError as error:  # the others still count, and this one is tried again next time
        return {"id": trial.id, "failed": str(error)}


def main() -> None:
    """Tune, compare, sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory that pretrain.py made")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="with the three data sets")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "trials.jsonl")
    parser.add_argument("--cores", type=int, nargs="+", default=[0, 1], help="processors to use, one process each")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    with tempfile.TemporaryDirectory(prefix="edgefed-quality-") as directory:
        options.model = without_dropout(options.model, Path(directory))
        run_all(tuning(), options, "learning rates")
        rates = best_rates(read(options.results))
        run_all(comparison(rates), options, "comparison")
        run_all(sweep(rates, winner(read(options.results))), options, "sweep")


if __name__ == "__main__":
    main()
