"""From trials to a table, a summary and a figure: `python -m benchmarks.aggregation_quality.summary`."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.aggregation_quality.run import FEDERATED, HERE, best_rates, read

WHO = (*FEDERATED, "local_only", "centralized")
SCENARIOS = {
    "dirichlet": "MTS-Dialog, Dirichlet 0.3, q and v",
    "section_header": "MTS-Dialog by section, q and v",
    "three_tasks": "three data sets, all linear layers",
}
Row = dict[str, Any]


def summarized(rows: Sequence[Row]) -> dict[str, Any]:
    """Return mean and spread by scenario and contender, loss by round, the sweep and the tuned learning rates."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["purpose"] == "compare":
            groups[row["scenario"], row["who"]].append(row)
    return {
        "learning_rates": best_rates(rows),
        "base": {row["scenario"]: _figures([row]) for row in rows if row["who"] == "base"},
        "scenarios": {
            scenario: {who: _figures(groups[scenario, who]) for who in WHO if groups[scenario, who]}
            for scenario in SCENARIOS
        },
        "sweep": [
            {key: row[key] for key in ("who", "rounds", "local_steps", "optimizer", "server_rate", "loss")}
            for row in rows
            if row["purpose"] == "sweep"
        ],
        "commits": sorted({row["provenance"]["commit"] for row in rows}),
        "machine": rows[0]["provenance"],
    }


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": len(rows)}
    for key in ("loss", "rouge_l"):
        values = [row[key] for row in rows]
        found[key] = round(mean(values), 4)
        found[f"{key}_spread"] = round(stdev(values), 4) if len(values) > 1 else None
        found[f"{key}_by_seed"] = [round(row[key], 4) for row in sorted(rows, key=lambda row: row["seed"])]
    if all(row.get("curve") for row in rows):
        by_round = zip(*(row["curve"] for row in rows), strict=True)
        found["loss_by_round"] = [round(mean(mean(one.values()) for one in losses), 4) for losses in by_round]
    return found


def table(summary: dict[str, Any]) -> str:
    """Return a Markdown table: loss and ROUGE-L, mean ± standard deviation over the seeds."""
    lines = ["| | " + " | ".join(SCENARIOS.values()) + " |", "|---|" + "---|" * len(SCENARIOS)]
    for who in WHO:
        cells = [_cell(summary["scenarios"][scenario].get(who)) for scenario in SCENARIOS]
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(one: dict[str, Any] | None) -> str:
    if one is None:
        return "–"
    spread = one["loss_spread"] or 0.0
    return f"{one['loss']:.3f} ± {spread:.3f} · {one['rouge_l']:.3f} ± {one['rouge_l_spread'] or 0.0:.3f}"


def draw(summary: dict[str, Any], path: Path) -> None:
    """Write the figure: every seed's final loss as a dot, the mean as a bar mark, by scenario."""
    figure, axes = plt.subplots(1, len(SCENARIOS), figsize=(12, 3.6), layout="constrained")
    for axis, (scenario, title) in zip(axes, SCENARIOS.items(), strict=True):
        found = summary["scenarios"][scenario]
        names = [who for who in reversed(WHO) if who in found]
        for height, who in enumerate(names):
            color = "tab:blue" if who in FEDERATED else "tab:gray"
            losses = found[who]["loss_by_seed"]
            axis.plot(losses, [height] * len(losses), "o", color=color, alpha=0.5, markersize=5)
            axis.plot([found[who]["loss"]], [height], "|", color=color, markersize=16, markeredgewidth=2.5)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("validation loss, nats per token")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Write summary.json and losses.svg beside the trials, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    summary = summarized(read(options.results / "trials.jsonl"))
    (options.results / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw(summary, options.results / "losses.svg")
    print(table(summary))


if __name__ == "__main__":
    main()
