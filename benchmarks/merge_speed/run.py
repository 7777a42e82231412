"""How fast a round is merged, and in how much memory, against dense sum + full SVD per matrix.

    python -m benchmarks.merge_speed.run

Device files are written first. Every measurement is a fresh process with the same number of BLAS threads, and
where two ways are compared for time they take turns in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import provenance
from edgefed.aggregation.flexlora import FLEXLORA
from edgefed.aggregation.method import Contribution
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.lora.files import open_adapter, write_adapter
from edgefed.lora.low_rank import LowRank
from edgefed.lora.merge import MergePath, Term, choose_path, weighted_sum

RANK = 64
ROUND_RANKS = (4, 4, 8, 8, 16, 16, 32, 32, 64, 64)
CROWDS = (50, 100, 200, 400)
CROWD_RANK = 8


# ---------------------------------------------------------------------- the devices' files


def write_devices(directory: Path, ranks: Sequence[int], matrices: int, size: int) -> None:
    """What devices send that started from one global adapter: its truncation, moved by a tenth of its size."""
    rng = np.random.default_rng(0)
    start = {f"m{at}": _random(rng, size, max(ranks)) for at in range(matrices)}
    for device, rank in enumerate(ranks):
        update = {}
        for module, matrix in start.items():
            change = _random(rng, size, rank).scaled(0.1)
            own = matrix.truncated(rank)
            update[module] = LowRank(own.left + change.left, own.right + change.right)
        write_adapter(directory / f"{device:03d}.safetensors", update, precision="fp32")


def _random(rng: np.random.Generator, size: int, rank: int) -> LowRank:
    decay = np.float32(0.95) ** np.arange(rank, dtype=np.float32)
    left = rng.standard_normal((size, rank), np.float32) * decay
    return LowRank(left, rng.standard_normal((rank, size), np.float32) / np.float32(np.sqrt(size)))


def _terms(directory: Path, module: str, count: int | None = None) -> list[Term]:
    files = [open_adapter(path) for path in sorted(directory.iterdir())[:count]]
    return [
        Term((at + 1) / (len(files) * (len(files) + 1) / 2), file.shapes[module], file.rank, partial(file.load, module))
        for at, file in enumerate(files)
    ]


# ---------------------------------------------------------------------- the two ways


def merge_low_rank(terms: Sequence[Term]) -> LowRank:
    """Edgefed's merge, path chosen by size."""
    return weighted_sum(terms, RANK, seed=0)


def merge_dense(terms: Sequence[Term]) -> LowRank:
    """The published implementations, one matrix at a time: dense products summed, one full thin SVD, sliced."""
    total = np.zeros(terms[0].shape, np.float32)
    for term in terms:
        matrix = term.load()
        total += np.float32(term.weight) * (matrix.left @ matrix.right)
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    return LowRank(u[:, :RANK] * s[:RANK], vt[:RANK])


WAYS: dict[str, Callable[[Sequence[Term]], LowRank]] = {"low_rank": merge_low_rank, "dense": merge_dense}


# ---------------------------------------------------------------------- what runs in a process of its own


def measure_time(directory: Path, matrices: int, dense_matrices: int) -> dict[str, Any]:
    """Seconds of every matrix in edgefed's way, and of some of them, spread over the run, in the dense way."""
    seconds: dict[str, list[float]] = {"low_rank": [], "dense": []}
    every = max(1, matrices // dense_matrices)
    merge_low_rank(_terms(directory, "m0"))
    merge_dense([Term.of(LowRank(np.ones((300, 8), np.float32), np.ones((8, 300), np.float32)))])
    for at in range(matrices):
        terms = _terms(directory, f"m{at}")
        for way in ("low_rank", "dense") if at % every == 0 else ("low_rank",):
            began = time.perf_counter()
            WAYS[way](terms)
            seconds[way].append(time.perf_counter() - began)
    dense_total = statistics.median(seconds["dense"]) * matrices  # not the mean: others use this machine too
    return {
        "matrices": matrices,
        "path": choose_path(terms[0].shape, [term.rank for term in terms], RANK),
        "low_rank_total_s": sum(seconds["low_rank"]),
        "low_rank_median_s": statistics.median(seconds["low_rank"]),
        "dense_matrices_measured": len(seconds["dense"]),
        "dense_each_s": seconds["dense"],
        "dense_total_s_scaled_up": dense_total,
        "times_faster": dense_total / sum(seconds["low_rank"]),
    }


def measure_memory(directory: Path, way: str, matrices: int, count: int | None = None) -> dict[str, Any]:
    """Peak resident memory over what the process had before, results let go at once."""
    warm = Term.of(LowRank(np.ones((300, 8), np.float32), np.ones((8, 300), np.float32)))
    WAYS[way]([warm])
    before = _peak_bytes()
    for at in range(matrices):
        WAYS[way](_terms(directory, f"m{at}", count))
    return {"before_bytes": before, "peak_bytes": _peak_bytes(), "merge_bytes": _peak_bytes() - before}


def measure_round(directory: Path, matrices: int, size: int) -> dict[str, Any]:
    """A whole FlexLoRA round as the aggregator runs it: every module, state before and after held in memory."""
    state = FLEXLORA.init({f"m{at}": (size, size) for at in range(matrices)}, RANK, 0)
    before = _peak_bytes()
    files = [open_adapter(path) for path in sorted(directory.iterdir())]
    contributions = [
        Contribution(f"d{at:03d}", at + 1.0, file.rank, file.rank, file.load, state.adapter.__getitem__)
        for at, file in enumerate(files)
    ]
    began = time.perf_counter()
    after = FLEXLORA.apply(state, contributions, rank=RANK, optimizer=ServerOptimizer(), seed=1)
    seconds = time.perf_counter() - began
    result_bytes = sum(matrix.left.nbytes + matrix.right.nbytes for matrix in after.adapter.values())
    return {"seconds": seconds, "result_bytes": result_bytes, "grown_bytes": _peak_bytes() - before}


def measure_error(directory: Path, matrices: int) -> dict[str, Any]:
    """Both ways against float64: relative Frobenius errors, worst matrix."""
    worst: dict[str, float] = {}
    for at in range(matrices):
        terms = _terms(directory, f"m{at}")
        exact = np.zeros(terms[0].shape)
        for term in terms:
            matrix = term.load()
            exact += term.weight * (matrix.left.astype(np.float64) @ matrix.right.astype(np.float64))
        u, s, vt = np.linalg.svd(exact, full_matrices=False)
        best = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
        size, least = np.linalg.norm(exact), np.linalg.norm(s[RANK:])
        found = {"low_rank": merge_low_rank(terms), "dense": merge_dense(terms), "all": weighted_sum(terms, None)}
        dense = {name: matrix.left.astype(np.float64) @ matrix.right for name, matrix in found.items()}
        errors = {
            "low_rank_nothing_dropped": np.linalg.norm(dense["all"] - exact) / size,
            "low_rank_at_64_from_best_at_64": np.linalg.norm(dense["low_rank"] - best) / np.linalg.norm(best),
            "low_rank_at_64_over_least_error": (np.linalg.norm(dense["low_rank"] - exact) - least) / size,
            "dense_at_64_from_best_at_64": np.linalg.norm(dense["dense"] - best) / np.linalg.norm(best),
        }
        worst = {name: max(float(error), worst.get(name, -1.0)) for name, error in errors.items()}
    return {"matrices": matrices, "worst_relative_error": worst}


def measure_paths(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Every path and the dense way over R, to see whether `choose_path` chooses well. Median of three."""
    rows = []
    rng = np.random.default_rng(0)
    for size in sizes:
        for share in (0.05, 0.1, 0.25, 0.5, 0.75, 0.95, 1.5, 3.0):
            count = max(1, int(share * size) // CROWD_RANK)
            terms = [Term.of(_random(rng, size, CROWD_RANK), 1 / count) for _ in range(count)]
            ways = {"dense_way": merge_dense}
            for path in ("stacked", "dense"):
                if path == "dense" or count * CROWD_RANK < size:
                    ways[path] = partial(_merge_by, path)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(3):
                for name, merge in ways.items():
                    began = time.perf_counter()
                    merge(terms)
                    seconds[name].append(time.perf_counter() - began)
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            chosen = choose_path((size, size), [CROWD_RANK] * count, RANK)
            rows.append(
                {
                    "size": size,
                    "total_rank": count * CROWD_RANK,
                    "seconds": medians,
                    "chosen": chosen,
                    "times_faster_than_dense_way": medians["dense_way"] / medians[chosen],
                    "times_slower_than_best_path": medians[chosen]
                    / min(value for name, value in medians.items() if name != "dense_way"),
                }
            )
    return rows


def _merge_by(path: MergePath, terms: Sequence[Term]) -> LowRank:
    return weighted_sum(terms, RANK, path=path, seed=0)


def _peak_bytes() -> int:
    """Largest resident size of this process so far; getrusage's would count its parent's before the exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status names no VmHWM")


# ---------------------------------------------------------------------- the parent


def _in_process(threads: int, function: str, *arguments: Any) -> Any:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.merge_speed.run", "--child", function, json.dumps(arguments)]
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)


def _child(function: str, arguments: list[Any]) -> None:
    paths = [Path(value) if isinstance(value, str) and value.startswith("/") else value for value in arguments]
    print(json.dumps(globals()[function](*paths)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="BLAS threads of both ways")
    parser.add_argument("--matrices", type=int, default=144)
    parser.add_argument("--crowd-matrices", type=int, default=4, help="matrices of the rounds of many devices")
    parser.add_argument("--dense-matrices", type=int, default=6, help="matrices that the dense way is timed on")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.child[0], json.loads(options.child[1]))
        return
    inside = partial(_in_process, options.threads)
    result: dict[str, Any] = {
        **provenance(),
        "load_average": os.getloadavg(),
        "blas": np.show_config(mode="dicts")["Build Dependencies"]["blas"],
        "config": {"threads": options.threads, "size": options.size, "rank": RANK, "ranks": ROUND_RANKS},
    }
    with tempfile.TemporaryDirectory() as temporary:
        round_ = Path(temporary, "round")
        round_.mkdir()
        write_devices(round_, ROUND_RANKS, options.matrices, options.size)
        few = min(4, options.matrices)
        result["round_of_10"] = inside("measure_time", str(round_), options.matrices, options.dense_matrices)
        result["round_of_10"]["memory"] = {way: inside("measure_memory", str(round_), way, few) for way in WAYS}
        result["round_of_10"]["whole_round"] = inside("measure_round", str(round_), options.matrices, options.size)
        result["round_of_10"]["error"] = inside("measure_error", str(round_), 2)
        print(json.dumps(result["round_of_10"], indent=2))
        crowd = Path(temporary, "crowd")
        crowd.mkdir()
        write_devices(crowd, [CROWD_RANK] * max(CROWDS), options.crowd_matrices, options.size)
        result["crowds"] = [
            {
                "devices": count,
                "low_rank": inside("measure_memory", str(crowd), "low_rank", 2, count),
                "dense": inside("measure_memory", str(crowd), "dense", 2, count),
            }
            for count in CROWDS
        ]
        print(json.dumps(result["crowds"], indent=2))
        for path in sorted(crowd.iterdir())[200:]:
            path.unlink()
        result["crowd_of_200"] = inside("measure_time", str(crowd), options.crowd_matrices, options.crowd_matrices)
        print(json.dumps(result["crowd_of_200"], indent=2))
    result["paths"] = inside("measure_paths", [256, 768, options.size])
    print(json.dumps(result["paths"], indent=2))
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / f"{result['utc'][:10]}-{options.threads}-threads.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(target)


if __name__ == "__main__":
    main()
