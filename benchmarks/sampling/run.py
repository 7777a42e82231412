"""What looking at the hardware twice a second and timing the phases cost; see README.md."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.provenance import provenance
from benchmarks.sampling.looks import BOARDS, cost_on_board, cost_on_this_machine
from benchmarks.sampling.rounds_worker import timer_s_per_step
from benchmarks.sampling.steps import RoundsWorker, compare
from edgefed.devices.instruments import find_instruments


def main() -> None:
    """Measure all of it and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looks", type=int, default=200, help="per repeat and board")
    parser.add_argument("--repeats", type=int, default=9, help="per board")
    parser.add_argument("--window", type=float, default=60.0, help="seconds at 2 Hz on this machine")
    parser.add_argument("--turns", type=int, default=40, help="of four rounds each")
    parser.add_argument("--steps", type=int, default=20, help="per round")
    parser.add_argument("--threads", type=int, default=1, help="of the training")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        boards = {}
        for board in sorted(one.name for one in BOARDS.iterdir() if one.is_dir()):
            boards[board] = cost_on_board(board, Path(scratch), looks=options.looks, repeats=options.repeats)
            print(f"{board}: {boards[board]['share_of_a_core']:.3%} of a core", flush=True)
        here = cost_on_this_machine(options.window)
        print(f"this machine: {here['share_of_a_core']:.3%} of a core", flush=True)
        with RoundsWorker(Path(scratch), steps=options.steps, threads=options.threads) as worker:
            steps = compare(worker, find_instruments(), turns=options.turns)
        timer_s = timer_s_per_step()
    result = {
        "provenance": provenance(),
        "target": {"share_of_a_core_at_most": 0.01, "step_ratio_at_most": 1.01},
        "recorded_boards": boards,
        "this_machine": here,
        "training": {
            "steps_per_round": options.steps,
            "threads": options.threads,
            **steps,
            "timer_s_per_step": timer_s,
            "timer_share_of_a_step": timer_s / steps["bare_step_s"],
        },
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["training"], indent=2))


if __name__ == "__main__":
    main()
