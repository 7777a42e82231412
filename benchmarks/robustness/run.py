"""How far hostile devices move a sum under each rule, and what each rule costs beside the plain merge.

    python -m benchmarks.robustness.run

Everything is made here: honest devices send one common change with noise of their own, hostile ones what an attack
says. The error is that of the merged change, against the same method's plain merge of the honest updates alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import provenance
from edgefed.aggregation.changes import shortened
from edgefed.aggregation.defence import defend
from edgefed.aggregation.method import Aggregation, Contribution, GlobalState
from edgefed.aggregation.methods import METHODS
from edgefed.aggregation.robustness import UNDEFENDED, Robustness
from edgefed.aggregation.server_optimizers import ServerOptimizer
from edgefed.lora.low_rank import LowRank

HONEST = 10
HOSTILE = (0, 1, 2, 3)
RANKS = (2, 4, 8, 16)
RANK = 16
AVERAGING = ServerOptimizer()


# ---------------------------------------------------------------------- what devices send


@dataclass(frozen=True)
class Fleet:
    """Ten honest devices that started from one global adapter.

    Attributes:
        method: how their updates are merged.
        size: of the square matrices.
        matrices: how many.
        noise: size of a device's own part beside the common part of 1.
        seed: of everything drawn.
    """

    method: Aggregation
    size: int
    matrices: int
    noise: float
    seed: int

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Module path -> (out_features, in_features)."""
        return {f"m{at}": (self.size, self.size) for at in range(self.matrices)}

    def state(self) -> GlobalState:
        """Before the first round."""
        return self.method.init(self.shapes, RANK, self.seed)

    def honest(self) -> list[Contribution]:
        """What the honest devices send."""
        state = self.state()
        return [self._device(f"honest-{at}", at, state, 1.0) for at in range(HONEST)]

    def hostile(self, count: int, attack: str, honest: Sequence[Contribution]) -> list[Contribution]:
        """What so many hostile ones send, who know what the honest ones do."""
        return [ATTACKS[attack](self, at, honest) for at in range(count)]

    def _device(self, name: str, number: int, state: GlobalState, factor: float) -> Contribution:
        rank = RANK if self.method.equal_ranks else RANKS[number % len(RANKS)]
        held = min(rank, RANK) if self.method.start == "truncated" else 0
        adapter: dict[str, LowRank] = {}
        for module, (rows, columns) in self.shapes.items():
            common = np.random.default_rng([self.seed, int(module[1:])])
            own = np.random.default_rng([self.seed, int(module[1:]), number + 1])
            decay = 0.5 ** np.arange(RANK)
            left = common.standard_normal((rows, RANK)) + self.noise * own.standard_normal((rows, RANK))
            right = state.adapter[module].right if held else self._rows(module, columns)
            change = LowRank((factor * left * decay / np.sqrt(rows)).astype("f4")[:, :rank], right[:rank])
            adapter[module] = change
        weight = float(np.random.default_rng([self.seed, number]).integers(50, 150))
        return Contribution(name, weight, rank, held, adapter.__getitem__, state.adapter.__getitem__, 1)

    def _rows(self, module: str, columns: int) -> np.ndarray:
        rows = np.random.default_rng([self.seed, int(module[1:]), 999]).standard_normal((columns, RANK))
        return np.linalg.qr(rows)[0].T.astype("f4")

    def scaled(self, at: int, factor: float) -> Contribution:
        """A device that trained honestly and sends a multiple of it, with a claim of a thousand times the data."""
        one = self._device(f"hostile-{at}", HONEST + at, self.state(), factor)
        return replace(one, weight=1e5)


def _a_little(fleet: Fleet, at: int, honest: Sequence[Contribution]) -> Contribution:
    """Baruch, Baruch, Goldberg: "A Little Is Enough", NeurIPS 2019, arXiv 1902.06083, with z = 0.8.

    All hostile devices send the honest mean less 0.8 standard deviations in every coordinate, nearer to each honest
    update than another honest one is. The fleet shares one basis, so coordinates are those of the left factor.
    """
    one = next(other for other in honest if other.rank == max(each.rank for each in honest))
    update: dict[str, LowRank] = {}
    for module in fleet.shapes:
        left = np.zeros((fleet.size, one.rank), np.float32)
        for component in range(one.rank):
            columns = np.stack([each.update(module).left[:, component] for each in honest if each.rank > component])
            left[:, component] = columns.mean(axis=0) - 0.8 * columns.std(axis=0)
        update[module] = LowRank(left, one.update(module).right)
    return replace(one, device=f"hostile-{at}", update=update.__getitem__, weight=100.0)


ATTACKS: Mapping[str, Callable[[Fleet, int, Sequence[Contribution]], Contribution]] = {
    "flipped ×1, claims 1000 times the data": lambda fleet, at, _: fleet.scaled(at, -1.0),
    "flipped ×10, claims 1000 times the data": lambda fleet, at, _: fleet.scaled(at, -10.0),
    "×10^6, claims 1000 times the data": lambda fleet, at, _: fleet.scaled(at, 1e6),
    "a little is enough": _a_little,
}


# ---------------------------------------------------------------------- rules


def rules(method: Aggregation, byzantine: int, norm: float) -> dict[str, Robustness]:
    """What is compared: nothing, twice the honest norm and 0.2 of the sum as bounds, and the two rules."""
    compared = {"none": UNDEFENDED}
    if not method.weighs_by_size:
        compared["bounds"] = Robustness(max_weight_share=0.2, max_update_norm=2 * norm)
    compared["multi_krum"] = Robustness(rule="multi_krum", byzantine=byzantine)
    if not method.untrimmed_because:
        compared["trimmed_mean"] = Robustness(rule="trimmed_mean", byzantine=byzantine)
    return compared


def merged(fleet: Fleet, robustness: Robustness, contributions: Sequence[Contribution]) -> GlobalState:
    """What the aggregator does between the close of a round and its new global adapter."""
    if robustness != UNDEFENDED:
        verdicts = defend(fleet.method, robustness, contributions, fleet.shapes)
        contributions = [
            replace(shortened(fleet.method, one, verdict.share) if verdict.share < 1 else one, weight=verdict.weight)
            for one, verdict in zip(contributions, verdicts, strict=True)
            if verdict.weight
        ]
    trim = robustness.byzantine if robustness.rule == "trimmed_mean" else 0
    return fleet.method.apply(fleet.state(), contributions, rank=RANK, optimizer=AVERAGING, seed=1, trim=trim)


def difference(found: GlobalState, expected: GlobalState) -> float:
    """Relative Frobenius distance over all matrices."""
    apart = [
        LowRank.stack([found.adapter[module], matrix.scaled(-1.0)]).norm() ** 2
        for module, matrix in expected.adapter.items()
    ]
    return float(np.sqrt(sum(apart) / sum(matrix.norm() ** 2 for matrix in expected.adapter.values())))


# ---------------------------------------------------------------------- measurements


def measure_errors(method: str, *, size: int, matrices: int, noise: float, seeds: int) -> list[dict[str, Any]]:
    """Median error over seeds, by attack, number of hostile devices and rule."""
    rows = []
    for attack in ATTACKS:
        for count in HOSTILE:
            errors: dict[str, list[float]] = {}
            for seed in range(seeds):
                fleet = Fleet(METHODS[method], size, matrices, noise, seed)
                honest = fleet.honest()
                norm = statistics.median(_norm(fleet, one) for one in honest)
                expected = merged(fleet, UNDEFENDED, honest)
                sent = [*honest, *fleet.hostile(count, attack, honest)]
                for name, robustness in rules(fleet.method, max(HOSTILE), norm).items():
                    errors.setdefault(name, []).append(difference(merged(fleet, robustness, sent), expected))
            medians = {name: statistics.median(values) for name, values in errors.items()}
            rows.append({"method": method, "attack": attack, "hostile": count, "median_relative_error": medians})
            print(method, attack, count, {name: f"{value:.3g}" for name, value in medians.items()}, flush=True)
    return rows


def _norm(fleet: Fleet, one: Contribution) -> float:
    """Size of a change from the zero matrix that every fleet here starts from."""
    return float(np.sqrt(sum(one.update(module).norm() ** 2 for module in fleet.shapes)))


def measure_times(method: str, *, size: int, matrices: int, repeats: int) -> dict[str, Any]:
    """Median seconds of a merge, the rules taking turns, and each as a multiple of the plain one."""
    fleet = Fleet(METHODS[method], size, matrices, 0.5, 0)
    honest = fleet.honest()
    seconds: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for name, robustness in rules(fleet.method, max(HOSTILE), _norm(fleet, honest[0]) / 4).items():
            began = time.perf_counter()
            merged(fleet, robustness, honest)
            if repeat:  # the first turn warms up
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    row = {
        "method": method,
        "size": size,
        "matrices": matrices,
        "median_s": medians,
        "times_plain": {name: value / medians["none"] for name, value in medians.items()},
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.5, help="a device's own part beside the common part of 1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    errors = [
        row
        for method in ("flexlora", "frozen_global", "hetlora", "fedit")
        for row in measure_errors(method, size=128, matrices=2, noise=options.noise, seeds=options.seeds)
    ]
    times = [
        measure_times(method, size=size, matrices=2, repeats=options.repeats)
        for method in ("flexlora", "fedit")
        for size in (512, 1024)
    ]
    result = {
        **provenance(),
        "config": {"honest": HONEST, "ranks": RANKS, "server_rank": RANK, "byzantine": max(HOSTILE), **vars(options)},
        "errors": errors,
        "times": times,
    }
    result["config"].pop("output")
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.output / f"{result['utc'][:10]}.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(target)


if __name__ == "__main__":
    main()
